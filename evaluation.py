"""The papers' metrics as functions on features, whatever network the features are of.

FID (Heusel et al., 2017, arXiv 1706.08500, eq. 6) of Gaussians with means μ and covariances Σ:
    |μ_r − μ_g|² + tr Σ_r + tr Σ_g − 2 tr (Σ_r Σ_g)^½
Inception score (Salimans et al., 2016, arXiv 1606.03498): exp E_x KL(p(y|x) ‖ p(y))
Precision and recall (Kynkäänniemi et al., 2019, arXiv 1904.06991), density and coverage (Naeem
et al., 2020, arXiv 2002.09797): which samples lie in the spheres that reach from each sample to
its k-th nearest neighbour in its own set.

Everything takes (N, D) NumPy arrays, memory maps or torch tensors, and returns plain floats. FID
and the Inception score need NumPy and SciPy alone, so that they also run in the environment of
``requirements-tfgan.txt``; only the distances import torch.
"""

import itertools
import math

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
    with np.errstate(over="ignore"):
        # The squares, because a covariance or a distance overflows where they do.
        finite = all(np.isfinite(np.vdot(chunk, chunk)) for chunk in _float64_chunks(features))
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


def frechet_distance(real, fake):
    """The Fréchet distance of two feature sets (N, D), (M, D); FID where they are Inception's.

    Covariances divide by N − 1, as TF-GAN's and torch-fidelity's do. With Σ_r = AᵀA and Σ_g = BᵀB
    the square roots of the eigenvalues of Σ_r Σ_g are the singular values of A Bᵀ.

    Raises:
        UserError: fewer than two samples, unequal widths, values that are not finite.
    """
    real = _checked(real, "real features", at_least=2)
    fake = _checked(fake, "generated features", at_least=2)
    _require_one_width(real, fake)
    mean_real, root_real = _mean_and_root(real)
    mean_fake, root_fake = _mean_and_root(fake)
    trace_of_root = np.linalg.svd(root_real @ root_fake.T, compute_uv=False).sum()
    distance = (
        np.square(mean_real - mean_fake).sum()
        + np.square(root_real).sum()
        + np.square(root_fake).sum()
        - 2 * trace_of_root
    )
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


def _block_side(width, block_bytes):
    """The largest s for which a block of (s, s) distances of D-wide features fits `block_bytes`.

    Two float64 copies of (s, D) rows, and for every pair the distance and its rounding bound in
    float64, the distance in float32 and a few flags.
    """
    per_row, per_pair = 2 * 8 * width, 24
    side = int((math.sqrt(per_row**2 + 4 * per_pair * block_bytes) - per_row) / (2 * per_pair))
    if side < 1:
        raise UserError(
            f"block_bytes is {block_bytes}; features {width} wide need at least "
            f"{per_row + per_pair}."
        )
    return side


def _slices(count, side):
    return [slice(start, min(start + side, count)) for start in range(0, count, side)]


def _pairwise_distances(a, b, device):
    """Euclidean distances (n, m) between the rows of `a` (n, D) and `b` (m, D), on `device`.

    |a|² + |b|² − 2ab in float64: in float32 it would lose the neighbours that decide, and on the
    processor tried its matrix product is less than twice as fast. As in scikit-learn, and so in
    `prdc`, distances between float32 features are then rounded to float32, which makes equal
    distances compare as equal; those between float64 features are not. What cannot be told from 0
    in float64 is 0, so that copies of one sample are at no distance whatever the BLAS.
    """
    import torch

    rounded = torch.float32 if a.dtype == b.dtype == np.float32 else torch.float64
    # np.array copies: torch wants writable memory, and a memory map is not.
    a, b = (torch.from_numpy(np.array(x)).to(device, torch.float64) for x in (a, b))
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = torch.mm(a, b.T).mul_(-2).add_(squares)
    rounding_bound = squares.mul_((a.shape[1] + 1) * np.finfo(np.float64).eps)
    squared.masked_fill_(squared < rounding_bound, 0)
    return squared.to(rounded).sqrt_()


def _k_smallest(best, distances):
    """The k smallest per row of `best` (n, k) and `distances` (n, m) together, ascending."""
    import torch

    k = best.shape[1]
    smallest = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return torch.cat([best, smallest], dim=1).topk(k, dim=1, largest=False).values


def _progress(pairs, what):
    """`pairs` of blocks with a progress bar, if it takes long; no more than one at a time."""
    return tqdm(pairs, desc=what, unit="block", leave=None, delay=1)


def _neighbour_radii(features, nearest_k, side, device, name):
    """Distance (N,) of each of `features` (N, D) to its k-th nearest neighbour in the same set."""
    import torch

    # One more than k, because every sample is its own nearest.
    best = torch.full((len(features), nearest_k + 1), math.inf, dtype=torch.float64, device=device)
    pairs = list(itertools.combinations_with_replacement(_slices(len(features), side), 2))
    for rows, columns in _progress(pairs, f"distances, {name}"):
        distances = _pairwise_distances(features[rows], features[columns], device)
        best[rows] = _k_smallest(best[rows], distances)
        if rows != columns:
            best[columns] = _k_smallest(best[columns], distances.T)
    return best[:, -1]


def precision_recall_density_coverage(real, fake, nearest_k=3, block_bytes=2**26, device="cpu"):
    """Precision, recall, density and coverage of features (N, D), (M, D), as `prdc` defines them.

    Args:
        nearest_k: the neighbour up to which a sample's sphere reaches.
        block_bytes: what one block of distances may take on `device`, above the features. Blocks
            larger than the default are slower on a CPU; a GPU may want them.
        device: where the distances are computed.

    Returns:
        A dict of four floats.

    Raises:
        UserError: fewer than nearest_k + 1 samples in a set, unequal widths, values that are not
            finite, a `nearest_k` below 1, or too small a `block_bytes`.
    """
    import torch

    require_positive(nearest_k, "nearest_k")
    real = _checked(real, "real features", at_least=nearest_k + 1)
    fake = _checked(fake, "generated features", at_least=nearest_k + 1)
    _require_one_width(real, fake)
    side = _block_side(real.shape[1], block_bytes)

    real_radii = _neighbour_radii(real, nearest_k, side, device, "real–real")
    fake_radii = _neighbour_radii(fake, nearest_k, side, device, "generated–generated")
    spheres_around_fake = torch.zeros(len(fake), dtype=torch.int64, device=device)
    real_is_recalled = torch.zeros(len(real), dtype=torch.bool, device=device)
    nearest_fake = torch.full((len(real),), math.inf, dtype=torch.float64, device=device)
    pairs = list(itertools.product(_slices(len(real), side), _slices(len(fake), side)))
    for rows, columns in _progress(pairs, "distances, real–generated"):
        distances = _pairwise_distances(real[rows], fake[columns], device)
        spheres_around_fake[columns] += (distances < real_radii[rows, None]).sum(0)
        real_is_recalled[rows] |= (distances < fake_radii[columns]).any(1)
        nearest_fake[rows] = torch.minimum(nearest_fake[rows], distances.amin(1).double())
    return {
        "precision": (spheres_around_fake > 0).double().mean().item(),
        "recall": real_is_recalled.double().mean().item(),
        "density": spheres_around_fake.double().mean().item() / nearest_k,
        "coverage": (nearest_fake < real_radii).double().mean().item(),
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
            "Python 3.9 to 3.11 and requirements-tfgan.txt."
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
    values = prdc.compute_prdc(real, fake, nearest_k)
    return {name: float(value) for name, value in values.items()}
