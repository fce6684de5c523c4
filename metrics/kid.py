"""KID, the Kernel Inception Distance (Bińkowski et al., 2018, arXiv 1801.01401).

The squared maximum mean discrepancy with the kernel k(x, y) = (xᵀy / D + 1)³, unbiased, of m
samples x of one set and m samples y of the other:
    Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m − 1)) − 2 Σ_{i,j} k(x_i, y_j) / m²

Its mean over random subsets of the sets is what torch-fidelity reports. Subsets, kernel and random
numbers are torch-fidelity's.
"""

import numpy as np
from tqdm import tqdm

from metrics.feature_arrays import checked_sets

SUBSETS = 100
SEED = 2020  # torch-fidelity's, so that the subsets are the same


def kernel_inception_distance(
    real: np.ndarray, fake: np.ndarray, subset_size: int = 1000
) -> dict[str, float]:
    """Mean and standard deviation of the unbiased MMD² of features (N, D), (M, D) over subsets.

    Args:
        subset_size: samples of each set in a subset, drawn without replacement; at most those of
            the smaller set.

    Returns:
        A dict of `kid`, `kid_std` and `kid_subset_size`, the size that was used. Of equal
        distributions `kid` is 0 on average, and may be below it.

    Raises:
        UserError: fewer than 2 samples in a set, unequal widths, values that are not finite.
    """
    real, fake = checked_sets(real, fake, at_least=2)
    subset_size = min(subset_size, len(real), len(fake))
    # This generator, and the generated set first: so torch-fidelity draws.
    draw = np.random.RandomState(SEED)
    values = []
    for _ in tqdm(range(SUBSETS), desc="KID", unit="subset", leave=None, delay=1):
        x, y = (
            np.asarray(features[draw.choice(len(features), subset_size, replace=False)], np.float64)
            for features in (fake, real)
        )
        values.append(unbiased_mmd2(x, y))
    return {
        "kid": float(np.mean(values)),
        "kid_std": float(np.std(values)),
        "kid_subset_size": subset_size,
    }


def unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased MMD² of two sets of m samples (m, D)."""
    m = len(x)
    within = sum(k.sum() - np.trace(k) for k in (_kernel(x, x), _kernel(y, y)))
    return within / (m * (m - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x, y):
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # NumPy's power takes many times as long
