"""Which samples lie in the spheres that reach from each sample to its k-th nearest neighbour.

Distances between features (N, D) come in blocks of |a|² + |b|² − 2ab, one matrix product in
float64. As in scikit-learn, and so in `prdc`, those between float32 features are then rounded to
float32, which makes equal distances compare as equal. Those between float64 features compare as
equal where rounding could have made the difference.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from tqdm import tqdm


def block_side(width: int, block_bytes: int) -> int:
    """The largest s for which a block of (s, s) distances of D-wide features fits `block_bytes`.

    It takes 16·s·D bytes for the rows in float64, and for each pair at most six numbers of 8 bytes.
    """
    return max(1, (math.isqrt(64 * width**2 + 48 * block_bytes) - 8 * width) // 48)


def distances(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Distances (n, m) of float32 features (n, D), (m, D); squared distances of float64 ones.

    Returns:
        The distances, and what they must differ by to be told apart.
    """
    rounded = a.dtype == torch.float32
    a, b = a.double(), b.double()
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = torch.addmm(squares, a, b.T, alpha=-2)
    error = squares.mul_(2 * (a.shape[1] + 2) * torch.finfo(torch.float64).eps)
    squared.masked_fill_(squared < error, 0)  # copies of one sample are at no distance
    return (squared.float().sqrt_(), 0.0) if rounded else (squared, error)


def radii(x: torch.Tensor, nearest_k: int, side: int, name: str) -> torch.Tensor:
    """Distance (N,), as `distances` gives it, of each of x (N, D) to its k-th nearest neighbour."""
    # One more than k, because every sample is its own nearest.
    nearest = torch.full((len(x), nearest_k + 1), math.inf, dtype=x.dtype, device=x.device)
    pairs = list(itertools.combinations_with_replacement(_slices(len(x), side), 2))
    for rows, columns in _progress(pairs, name):
        block, _ = distances(x[rows], x[columns])
        _keep_nearest(nearest, rows, block)
        if rows != columns:
            _keep_nearest(nearest, columns, block.T)
    return nearest.amax(1)


def spheres(
    a: torch.Tensor, b: torch.Tensor, radii_a: torch.Tensor, radii_b: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which of the features a (N, D) and b (M, D) lie within each other's radii (N,), (M,).

    Returns:
        For each of b the number of a's spheres around it (M,); whether each of a has one of b in
        its sphere (N,); whether each of a lies in one of b's (N,).
    """
    around_b = torch.zeros(len(b), dtype=torch.int64, device=a.device)
    covered = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    recalled = torch.zeros_like(covered)
    pairs = list(itertools.product(_slices(len(a), side), _slices(len(b), side)))
    for rows, columns in _progress(pairs, "real–generated"):
        block, error = distances(a[rows], b[columns])
        in_a = block < radii_a[rows, None] - error
        around_b[columns] += in_a.sum(0)
        covered[rows] |= in_a.any(1)
        recalled[rows] |= (block < radii_b[columns] - error).any(1)
    return around_b, covered, recalled


def _slices(count: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, count)) for start in range(0, count, side)]


def _keep_nearest(nearest, rows, block):
    """Keep in nearest[rows] (n, k) the k smallest of themselves and of the block (n, m)."""
    k = nearest.shape[1]
    smallest = block.topk(min(k, block.shape[1]), dim=1, largest=False).values
    nearest[rows] = torch.cat([nearest[rows], smallest], 1).topk(k, dim=1, largest=False).values


def _progress(pairs: Sequence, name: str) -> tqdm:
    return tqdm(pairs, desc=f"distances, {name}", unit="block", leave=None, delay=1)
