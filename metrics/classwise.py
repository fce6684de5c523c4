"""Metrics class by class: the papers' CW metrics."""

from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from utils import UserError


def split_by_class(features: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Views of features (N, D) that lie class after class, `sizes[c]` of them for class c.

    Raises:
        UserError: the sizes do not add up to N.
    """
    ends = np.cumsum(sizes)
    if ends[-1] != len(features):
        raise UserError(
            f"The classes hold {ends[-1]} samples together, but there are {len(features)} features."
        )
    return [features[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def classwise(
    metric: Callable[..., dict[str, float]], *sets: Sequence[np.ndarray]
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Apply a metric class by class: the papers' CW metrics.

    Args:
        metric: takes one class's part of each set and returns a dict of floats.
        sets: lists with one entry per class, as `split_by_class` returns.

    Returns:
        A list of every class's dict, and the dict of their means over classes.

    Raises:
        UserError: the sets have unequal numbers of classes, or a class that the metric refuses.
    """
    if len({len(parts) for parts in sets}) != 1:
        counts = ", ".join(str(len(parts)) for parts in sets)
        raise UserError(f"The sets hold {counts} classes; class-wise metrics need equal numbers.")
    values = []
    pairs = list(zip(*sets, strict=True))
    for index, parts in enumerate(tqdm(pairs, desc="classes", unit="class", delay=1)):
        try:
            values.append(metric(*parts))
        except UserError as error:
            raise UserError(f"Class {index}: {error}") from None
    return values, {name: float(np.mean([value[name] for value in values])) for name in values[0]}
