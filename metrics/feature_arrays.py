"""Features as the metrics take them: (N, D) NumPy arrays, memory maps or torch tensors, checked."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from utils import UserError

if TYPE_CHECKING:  # torch need not be there
    import torch

ROWS = 4096  # samples taken to float64 at a time


def float64_chunks(features: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of `features` (N, D) as float64 pieces of at most ROWS rows."""
    for start in range(0, len(features), ROWS):
        yield np.asarray(features[start : start + ROWS], dtype=np.float64)


def checked(features: "np.ndarray | torch.Tensor", name: str, at_least: int = 1) -> np.ndarray:
    """Return `features` as an (N, D) array or memory map that holds what the metrics can use.

    Raises:
        UserError: not a matrix, fewer than `at_least` rows, or a value that is not finite.
    """
    if hasattr(features, "detach"):  # a torch tensor
        features = features.detach().cpu().numpy()
    if features.ndim != 2 or features.shape[1] == 0:
        raise UserError(f"The {name} have shape {features.shape}; expected (samples, width).")
    if len(features) < at_least:
        raise UserError(f"There are {len(features)} {name}; this metric needs {at_least} or more.")
    # The squares, because a covariance or a distance overflows where they do.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.vdot(features, features)) or all(
            np.isfinite(np.vdot(chunk, chunk)) for chunk in float64_chunks(features)
        )
    if not finite:
        raise UserError(
            f"The {name} hold NaN, infinite or overflowing values; encode the images again, and "
            "if that does not help look at the samples."
        )
    return features


def checked_sets(
    real: "np.ndarray | torch.Tensor", fake: "np.ndarray | torch.Tensor", at_least: int
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
