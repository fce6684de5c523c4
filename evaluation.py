"""The papers' metrics as functions on features, whatever network the features are of.

FID (Heusel et al., 2017, arXiv 1706.08500, eq. 6) of Gaussians with means μ and covariances Σ:
    |μ_r − μ_g|² + tr Σ_r + tr Σ_g − 2 tr (Σ_r Σ_g)^½
Inception score (Salimans et al., 2016, arXiv 1606.03498): exp E_x KL(p(y|x) ‖ p(y))
Precision and recall (Kynkäänniemi et al., 2019, arXiv 1904.06991), density and coverage (Naeem
et al., 2020, arXiv 2002.09797): which samples lie in the spheres that reach from each sample to
its k-th nearest neighbour in its own set.

Everything takes (N, D) NumPy arrays, memory maps or torch tensors, and returns plain floats. FID
and the Inception score need NumPy and SciPy alone, so that they also run in the environment of
``requirements-tfgan.txt``; only the distances (`neighbours`) import torch.
"""

import contextlib
import math
import sys

import numpy as np
from scipy.special import entr, log_softmax
from tqdm import tqdm

from utils import UserError, require_positive

ROWS = 4096  # samples taken to float64 at a time


def _float64_chunks(features):
    """Yield the rows of `features` (N, D) as float64 pieces of at most ROWS rows."""
    for start in range(0, len(features), ROWS):
        yield np.asarray(features[start : start + ROWS], dtype=np.float64)


def _checked(features, name, at_least=1):
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
            np.isfinite(np.vdot(chunk, chunk)) for chunk in _float64_chunks(features)
        )
    if not finite:
        raise UserError(
            f"The {name} hold NaN, infinite or overflowing values; encode the images again, and "
            "if that does not help look at the samples."
        )
    return features


def _require_one_width(real, fake):
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"The real features are {real.shape[1]} wide, the generated ones {fake.shape[1]}; "
            "both must come from the same feature network."
        )


# ---------------------------------------------------------------- FID and Inception score


def _mean_and_root(features):
    """Mean μ (D,) and triangular R (min(N, D), D) such that RᵀR is the unbiased covariance.

    R comes from a QR decomposition of the centred rows, a piece at a time. Neither the covariance
    nor its eigenvalues are formed: squaring would lose half of the digits of the small ones, which
    are what a rank-deficient set (N < D) has most of.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    root = np.empty((0, features.shape[1]))
    for chunk in _float64_chunks(features):
        root = np.linalg.qr(np.concatenate([root, chunk - mean]), mode="r")
    return mean, root / math.sqrt(len(features) - 1)


def _mean_and_covariance(features):
    """Mean (D,) and unbiased covariance (D, D)."""
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for chunk in _float64_chunks(features):
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


def frechet_distance(real, fake):
    """The Fréchet distance of two feature sets (N, D), (M, D); FID where they are Inception's.

    Covariances divide by N − 1, as TF-GAN's and torch-fidelity's do. Where the last term of the
    formula cannot be had from them, it comes from triangular roots, Σ_r = AᵀA and Σ_g = BᵀB: the
    square roots of the eigenvalues of Σ_r Σ_g are the singular values of A Bᵀ.

    Raises:
        UserError: fewer than two samples, unequal widths, values that are not finite.
    """
    real = _checked(real, "real features", at_least=2)
    fake = _checked(fake, "generated features", at_least=2)
    _require_one_width(real, fake)
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


def inception_score(logits):
    """The Inception score of logits (N, K), over the whole set: no splits, as TF-GAN's.

    E KL(p(y|x) ‖ p(y)) = H(p(y)) − E H(p(y|x)), which needs one pass and no log of a zero.

    Raises:
        UserError: no samples, or values that are not finite.
    """
    logits = _checked(logits, "logits")
    marginal, sum_p_log_p = np.zeros(logits.shape[1]), 0.0
    for chunk in _float64_chunks(logits):
        log_p = log_softmax(chunk, axis=1)
        p = np.exp(log_p)
        marginal += p.sum(axis=0)
        sum_p_log_p += np.vdot(p, log_p)
    count = len(logits)
    return float(np.exp(entr(marginal / count).sum() + sum_p_log_p / count))


def fid_and_is(real, fake, fake_logits):
    """FID of pooled features (N, D), (M, D) and Inception score of logits (M, K), as a dict."""
    return {"fid": frechet_distance(real, fake), "is": inception_score(fake_logits)}


# ---------------------------------------------------------------- precision, recall, ...


def precision_recall_density_coverage(real, fake, nearest_k=3, block_bytes=2**28, device="cpu"):
    """Precision, recall, density and coverage of features (N, D), (M, D), as `prdc` defines them.

    Args:
        nearest_k: the neighbour up to which a sample's sphere reaches.
        block_bytes: what one block of distances may take on `device`, above the features and a
            rounded copy of them.
        device: where the distances are computed.

    Returns:
        A dict of four floats.

    Raises:
        UserError: fewer than nearest_k + 1 samples in a set, unequal widths, values that are not
            finite, a `nearest_k` below 1, or too small a `block_bytes`.
    """
    from metrics import neighbours
    from models.compute import exact_products

    require_positive(nearest_k, "nearest_k")
    real = _checked(real, "real features", at_least=nearest_k + 1)
    fake = _checked(fake, "generated features", at_least=nearest_k + 1)
    _require_one_width(real, fake)
    with exact_products():  # those of TF32 are further off than the bounds allow for
        side = neighbours.block_side(real.shape[1], block_bytes)
        distances = neighbours.Distances((real, fake), side, device)
        real, fake = distances.features(real), distances.features(fake)
        real_radii = distances.radii(real, nearest_k, "real–real")
        fake_radii = distances.radii(fake, nearest_k, "generated–generated")
        around_fake, covered, recalled = distances.spheres(real, fake, real_radii, fake_radii)
    return {
        "precision": (around_fake > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": around_fake.double().mean().item() / nearest_k,
        "coverage": covered.double().mean().item(),
    }


# ---------------------------------------------------------------- per class


def split_by_class(features, sizes):
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


def classwise(metric, *sets):
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


# ---------------------------------------------------------------- the oracles themselves


def tfgan_fid_and_is(real, fake, fake_logits):
    """What `fid_and_is` returns, computed by TF-GAN.

    Raises:
        UserError: TF-GAN is not installed in this environment, or what `fid_and_is` raises.
    """
    try:
        import tensorflow_gan as tfgan
    except ImportError as error:
        raise UserError(
            f"TF-GAN does not import here ({error}); it needs an environment of its own, with "
            "Python 3.10 or 3.11 and requirements-tfgan.txt."
        ) from None
    real = _checked(real, "real features", at_least=2)
    fake = _checked(fake, "generated features", at_least=2)
    _require_one_width(real, fake)
    fid = tfgan.eval.frechet_classifier_distance_from_activations(real, fake)
    score = tfgan.eval.classifier_score_from_logits(fake_logits)
    return {"fid": float(fid), "is": float(score)}


def prdc_package(real, fake, nearest_k=3):
    """What `precision_recall_density_coverage` returns, computed by the `prdc` package.

    It holds whole distance matrices: 4·(N² + M² + NM) bytes and more.

    Raises:
        UserError: the package is not installed, or what that function raises.
    """
    try:
        import prdc
    except ImportError:
        raise UserError("The package prdc is not installed; pip install prdc.") from None
    require_positive(nearest_k, "nearest_k")
    real = _checked(real, "real features", at_least=nearest_k + 1)
    fake = _checked(fake, "generated features", at_least=nearest_k + 1)
    _require_one_width(real, fake)
    with contextlib.redirect_stdout(sys.stderr):  # it prints
        values = prdc.compute_prdc(real, fake, nearest_k)
    return {name: float(value) for name, value in values.items()}
