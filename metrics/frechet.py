"""The Fréchet distance of two sets of features; FID where they are Inception's.

For Gaussians with means μ and covariances Σ (Heusel et al., 2017, arXiv 1706.08500, eq. 6):
    |μ_r − μ_g|² + tr Σ_r + tr Σ_g − 2 tr (Σ_r Σ_g)^½

With Σ_r = AᵀA and Σ_g = BᵀB the last trace is the sum of the singular values of A Bᵀ.
"""

import math

import numpy as np

from metrics.feature_arrays import checked_sets, float64_chunks


def _mean_and_root(features):
    """Mean μ (D,) and triangular R (min(N, D), D) such that RᵀR is the unbiased covariance.

    R comes from a QR decomposition of the centred rows, in chunks. The covariance itself is never
    formed: squaring loses half of the digits of small eigenvalues, and a set with fewer samples
    than features has many of these.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    root = np.empty((0, features.shape[1]))
    for chunk in float64_chunks(features):
        root = np.linalg.qr(np.concatenate([root, chunk - mean]), mode="r")
    return mean, root / math.sqrt(len(features) - 1)


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """The Fréchet distance of two feature sets (N, D), (M, D); FID where they are Inception's.

    Covariances divide by N − 1, as TF-GAN's and torch-fidelity's do.

    Raises:
        UserError: fewer than two samples, unequal widths, values that are not finite.
    """
    real, fake = checked_sets(real, fake, at_least=2)
    mean_real, root_real = _mean_and_root(real)
    mean_fake, root_fake = _mean_and_root(fake)
    traces = np.square(root_real).sum() + np.square(root_fake).sum()
    trace_of_root = np.linalg.svd(root_real @ root_fake.T, compute_uv=False).sum()
    distance = np.square(mean_real - mean_fake).sum() + traces - 2 * trace_of_root
    return max(float(distance), 0.0)  # rounding can leave equal sets slightly below 0
