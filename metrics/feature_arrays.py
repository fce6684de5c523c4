"""Checks of features (N, D), which every metric makes first."""

from collections.abc import Iterator

import numpy as np

from utils import UserError

ROWS = 4096  # samples converted to float64 at a time


def float64_chunks(features: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of `features` (N, D) in float64, at most ROWS at a time."""
    for start in range(0, len(features), ROWS):
        yield np.asarray(features[start : start + ROWS], dtype=np.float64)


def checked(features: np.ndarray, name: str, at_least: int = 1) -> np.ndarray:
    """`features`, checked to be an (N, D) array of finite values.

    Raises:
        UserError: not a matrix, fewer than `at_least` rows, or a value that is not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise UserError(f"The {name} have shape {features.shape}; expected (samples, width).")
    if len(features) < at_least:
        raise UserError(f"There are {len(features)} {name}; this metric needs {at_least} or more.")
    # Squares are tested, because a covariance or a distance overflows where they do.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = all(np.isfinite(np.vdot(chunk, chunk)) for chunk in float64_chunks(features))
    if not finite:
        raise UserError(
            f"The {name} hold NaN, infinite or overflowing values; encode the images again. If "
            "that does not help, check the samples."
        )
    return features


def checked_sets(
    real: np.ndarray, fake: np.ndarray, at_least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both sets of features, `checked`, and of one width (else a UserError)."""
    real = checked(real, "real features", at_least)
    fake = checked(fake, "generated features", at_least)
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"The real features are {real.shape[1]} wide, the generated ones {fake.shape[1]}; "
            "both must come from the same feature network."
        )
    return real, fake
