"""KID, the Kernel Inception Distance (Bińkowski et al., 2018, arXiv 1801.01401), by torch-fidelity.

The squared maximum mean discrepancy with the kernel k(x, y) = (xᵀy / D + 1)³, unbiased, of m
samples x of one set and m samples y of the other:
    Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m − 1)) − 2 Σ_{i,j} k(x_i, y_j) / m²

The reported value is its mean over random subsets of the sets.
"""

import numpy as np
import torch

from metrics.feature_arrays import checked_sets

SUBSETS = 100


def kernel_inception_distance(
    real: np.ndarray, fake: np.ndarray, subset_size: int = 1000
) -> dict[str, float]:
    """Mean and standard deviation of the unbiased MMD² of features (N, D), (M, D) over subsets.

    Args:
        subset_size: samples of each set in a subset, drawn without replacement; reduced to the
            size of the smaller set.

    Returns:
        A dict of `kid`, `kid_std` and `kid_subset_size`, the size that was used. For equal
        distributions `kid` is 0 on average, and may be negative.

    Raises:
        UserError: fewer than 2 samples in a set, unequal widths, values that are not finite.
    """
    from torch_fidelity import metric_kid

    real, fake = checked_sets(real, fake, at_least=2)
    subset_size = min(subset_size, len(real), len(fake))
    sets = (torch.tensor(features, dtype=torch.float64) for features in (fake, real))
    found = metric_kid.kid_features_to_metric(
        *sets, kid_subsets=SUBSETS, kid_subset_size=subset_size, verbose=True
    )
    return {
        "kid": found[metric_kid.KEY_METRIC_KID_MEAN],
        "kid_std": found[metric_kid.KEY_METRIC_KID_STD],
        "kid_subset_size": subset_size,
    }
