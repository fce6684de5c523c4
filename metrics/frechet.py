"""The Fréchet distance of two sets of features; FID where they are Inception's.

Of Gaussians with means μ and covariances Σ (Heusel et al., 2017, arXiv 1706.08500, eq. 6):
    |μ_r − μ_g|² + tr Σ_r + tr Σ_g − 2 tr (Σ_r Σ_g)^½

NumPy alone, so that it also runs in the environment of ``requirements-tfgan.txt``.
"""

import math

import numpy as np

from metrics import oracles
from metrics.feature_arrays import checked_sets, float64_chunks


def _mean_and_root(features):
    """Mean μ (D,) and triangular R (min(N, D), D) such that RᵀR is the unbiased covariance.

    R comes from a QR decomposition of the centred rows, a piece at a time. Neither the covariance
    nor its eigenvalues are formed: squaring would lose half of the digits of the small ones, which
    are what a rank-deficient set (N < D) has most of.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    root = np.empty((0, features.shape[1]))
    for chunk in float64_chunks(features):
        root = np.linalg.qr(np.concatenate([root, chunk - mean]), mode="r")
    return mean, root / math.sqrt(len(features) - 1)


def _mean_and_covariance(features):
    """Mean (D,) and unbiased covariance (D, D)."""
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for chunk in float64_chunks(features):
        centred = chunk - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(features) - 1)


def _trace_of_root(covariance, other):
    """tr (Σ_r Σ_g)^½, or None where rounding could show in its ninth digit.

    With Σ_r = LLᵀ it is Σ√λ over the eigenvalues of Lᵀ Σ_g L. Those are taken to be right to
    ε·‖Σ_r‖·‖Σ_g‖ (Frobenius), and so the root of one to that over √λ; roundings that accumulate
    and those that cancel are left out of this estimate.
    """
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return None
    eigenvalues = np.linalg.eigvalsh(lower.T @ other @ lower)
    error = np.finfo(np.float64).eps * np.linalg.norm(covariance) * np.linalg.norm(other)
    roots = np.sqrt(np.maximum(eigenvalues, error))
    return roots.sum() if (error / roots).sum() < 1e-8 * roots.sum() else None


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """The Fréchet distance of two feature sets (N, D), (M, D); FID where they are Inception's.

    Covariances divide by N − 1, as TF-GAN's and torch-fidelity's do. Where the last term of the
    formula cannot be had from them, it comes from triangular roots, Σ_r = AᵀA and Σ_g = BᵀB: the
    square roots of the eigenvalues of Σ_r Σ_g are the singular values of A Bᵀ.

    Raises:
        UserError: fewer than two samples, unequal widths, values that are not finite.
    """
    real, fake = checked_sets(real, fake, at_least=2)
    trace_of_root = None
    if min(len(real), len(fake)) > real.shape[1]:
        mean_real, covariance_real = _mean_and_covariance(real)
        mean_fake, covariance_fake = _mean_and_covariance(fake)
        traces = np.trace(covariance_real) + np.trace(covariance_fake)
        trace_of_root = _trace_of_root(covariance_real, covariance_fake)
    if trace_of_root is None:
        mean_real, root_real = _mean_and_root(real)
        mean_fake, root_fake = _mean_and_root(fake)
        traces = np.square(root_real).sum() + np.square(root_fake).sum()
        trace_of_root = np.linalg.svd(root_real @ root_fake.T, compute_uv=False).sum()
    distance = np.square(mean_real - mean_fake).sum() + traces - 2 * trace_of_root
    return max(float(distance), 0.0)  # rounding may leave equal sets a hair below 0


def tfgan_frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """What `frechet_distance` returns, computed by TF-GAN.

    Raises:
        UserError: TF-GAN is not installed in this environment, or what `frechet_distance` raises.
    """
    tfgan = oracles.load("tensorflow_gan", "TF-GAN")
    real, fake = checked_sets(real, fake, at_least=2)
    return float(tfgan.eval.frechet_classifier_distance_from_activations(real, fake))
