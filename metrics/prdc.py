"""Precision and recall (Kynkäänniemi et al., 2019, arXiv 1904.06991), density and coverage.

Which samples lie in the spheres that reach from each sample to its k-th nearest neighbour in its
own set; density and coverage are Naeem et al.'s (2020, arXiv 2002.09797). torch is imported where
the distances are computed (`neighbours`), and nowhere else.
"""

import contextlib
import sys
from typing import TYPE_CHECKING

import numpy as np

from metrics import oracles
from metrics.feature_arrays import checked_sets
from utils import require_positive

if TYPE_CHECKING:  # torch need not be there
    import torch


def precision_recall_density_coverage(
    real: np.ndarray,
    fake: np.ndarray,
    nearest_k: int = 3,
    block_bytes: int = 2**28,
    device: "torch.device | str" = "cpu",
) -> dict[str, float]:
    """Precision, recall, density and coverage of features (N, D), (M, D), as `prdc` defines them.

    Args:
        nearest_k: the neighbour up to which a sample's sphere reaches.
        block_bytes: what one block of distances may take on `device`, beside the features.
        device: where the distances are computed.

    Returns:
        A dict of four floats.

    Raises:
        UserError: fewer than nearest_k + 1 samples in a set, unequal widths, values that are not
            finite, or a `nearest_k` below 1.
    """
    import torch

    from metrics import neighbours

    require_positive(nearest_k, "nearest_k")
    real, fake = checked_sets(real, fake, at_least=nearest_k + 1)
    side = neighbours.block_side(real.shape[1], block_bytes)
    dtype = np.result_type(real.dtype, fake.dtype, np.float32)
    real, fake = (torch.tensor(np.asarray(x, dtype), device=device) for x in (real, fake))
    real_radii = neighbours.radii(real, nearest_k, side, "real–real")
    fake_radii = neighbours.radii(fake, nearest_k, side, "generated–generated")
    around_fake, covered, recalled = neighbours.spheres(real, fake, real_radii, fake_radii, side)
    return {
        "precision": (around_fake > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": around_fake.double().mean().item() / nearest_k,
        "coverage": covered.double().mean().item(),
    }


def prdc_package(real: np.ndarray, fake: np.ndarray, nearest_k: int = 3) -> dict[str, float]:
    """What `precision_recall_density_coverage` returns, computed by the `prdc` package.

    It holds whole distance matrices: 4·(N² + M² + NM) bytes and more.

    Raises:
        UserError: the package is not installed, or what that function raises.
    """
    package = oracles.load("prdc", "prdc")
    require_positive(nearest_k, "nearest_k")
    real, fake = checked_sets(real, fake, at_least=nearest_k + 1)
    with contextlib.redirect_stdout(sys.stderr):  # it prints
        values = package.compute_prdc(real, fake, nearest_k)
    return {name: float(value) for name, value in values.items()}
