"""Precision and recall (Kynkäänniemi et al., 2019, arXiv 1904.06991), density and coverage.

Each sample has a sphere that reaches to its k-th nearest neighbour in its own set. Precision is the
share of generated samples in a sphere of a real one, recall the converse. Density and coverage are
those of Naeem et al. (2020, arXiv 2002.09797).

Features are converted to float32. Distances are computed in blocks as |a|² + |b|² − 2ab, by one
matrix product in float64. As in scikit-learn, and so in `prdc`, they are then rounded to float32,
which makes equal distances compare as equal.
"""

import itertools
import math

import numpy as np
import torch
from tqdm import tqdm

from metrics.feature_arrays import checked_sets
from utils import require_positive

BLOCK = 2048  # rows and columns of a block of distances: 256 MiB with features 2,048 wide


def precision_recall_density_coverage(
    real: np.ndarray,
    fake: np.ndarray,
    nearest_k: int = 3,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Precision, recall, density and coverage of features (N, D), (M, D), as `prdc` defines them.

    Args:
        nearest_k: the neighbour up to which a sample's sphere reaches.
        device: where the distances are computed.

    Returns:
        A dict of four floats.

    Raises:
        UserError: fewer than nearest_k + 1 samples in a set, unequal widths, values that are not
            finite, or a `nearest_k` below 1.
    """
    require_positive(nearest_k, "nearest_k")
    real, fake = checked_sets(real, fake, at_least=nearest_k + 1)
    real, fake = (torch.tensor(x, dtype=torch.float32, device=device) for x in (real, fake))
    real_radii, fake_radii = radii(real, nearest_k), radii(fake, nearest_k)
    spheres_around = torch.zeros(len(fake), dtype=torch.int64, device=device)
    covered = torch.zeros(len(real), dtype=torch.bool, device=device)
    recalled = torch.zeros_like(covered)
    for rows, columns in _blocks(itertools.product(_slices(len(real)), _slices(len(fake)))):
        block = distances(real[rows], fake[columns])
        in_real = block < real_radii[rows, None]
        spheres_around[columns] += in_real.sum(0)
        covered[rows] |= in_real.any(1)
        recalled[rows] |= (block < fake_radii[columns]).any(1)
    return {
        "precision": (spheres_around > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": spheres_around.double().mean().item() / nearest_k,
        "coverage": covered.double().mean().item(),
    }


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distances (n, m), float32, of features (n, D), (m, D)."""
    a, b = a.double(), b.double()
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = torch.addmm(squares, a, b.T, alpha=-2)
    error = squares.mul_(2 * (a.shape[1] + 2) * torch.finfo(torch.float64).eps)
    squared.masked_fill_(squared < error, 0)  # duplicates have distance 0
    return squared.float().sqrt_()


def radii(x: torch.Tensor, nearest_k: int) -> torch.Tensor:
    """Distance (N,), as `distances` gives it, of each of x (N, D) to its k-th nearest neighbour."""
    # One more than k, because every sample is its own nearest neighbour.
    nearest = torch.full((len(x), nearest_k + 1), math.inf, dtype=x.dtype, device=x.device)
    for rows, columns in _blocks(itertools.combinations_with_replacement(_slices(len(x)), 2)):
        block = distances(x[rows], x[columns])
        pairs = [(rows, block)] if rows == columns else [(rows, block), (columns, block.T)]
        for index, values in pairs:
            both = torch.cat([nearest[index], values], dim=1)
            nearest[index] = both.topk(nearest_k + 1, dim=1, largest=False).values
    return nearest.amax(1)


def _slices(count):
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def _blocks(pairs):
    return tqdm(list(pairs), desc="distances", unit="block", leave=None, delay=1)
