"""FID, IS and P/R/D/C beside the reference implementations: the table of docs/metrics.md.

    python -m studies.metrics_parity

Compares with those that this environment has: torch-fidelity and prdc, or TF-GAN in that of
``requirements-tfgan.txt``.
"""

import contextlib
import importlib.util
import sys

import numpy as np

from metrics import kid
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score

SIZES = ((2000, 3000), (5000, 4000), (10000, 8000))
WIDTH = 2048
CLASSES = 1008


def correlated_features(seed, count, width, shift=0.0, scale=1.0):
    """Random float32 features (count, width): correlated, rectified, of low effective dimension.

    Such are Inception's; in 2,048 independent dimensions no sample would be near another.
    """
    rng, mixing_rng = np.random.default_rng(seed), np.random.default_rng(0)
    spectrum = np.arange(1, width + 1, dtype=np.float32)[:, None] ** -0.7
    mixing = mixing_rng.standard_normal((width, width), dtype=np.float32) * spectrum
    features = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, 5000):
        rows = features[start : start + 5000]
        latent = rng.standard_normal(rows.shape, dtype=np.float32)
        np.maximum(scale * latent @ mixing + (shift + 0.1), 0, out=rows)
    return features


def random_logits(seed, count, classes):
    """Random float32 logits (count, classes), confident enough for a score well above 1."""
    return 3 * np.random.default_rng(seed).standard_normal((count, classes), dtype=np.float32)


def real_and_fake(real_count, fake_count, width):
    """Two sets of features that differ as a good generator's samples differ from the data."""
    real = correlated_features(1, real_count, width)
    return real, correlated_features(2, fake_count, width, shift=0.02, scale=0.97)


# ---------------------------------------------------------------- our metrics, and the oracles


def fid_and_is(real, fake, logits):
    return {"fid": frechet_distance(real, fake), "is": inception_score(logits)}


def torch_fidelity_fid_and_is(real, fake, logits):
    """FID and Inception score by torch-fidelity; the score on one split."""
    import torch
    from torch_fidelity import metric_fid, metric_isc

    statistics = (metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake))
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    score = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=1)
    return {
        "fid": fid[metric_fid.KEY_METRIC_FID],
        "is": score[metric_isc.KEY_METRIC_ISC_MEAN],
    }


def tfgan_fid_and_is(real, fake, logits):
    """FID and Inception score by TF-GAN."""
    import tensorflow_gan as tfgan

    return {
        "fid": float(tfgan.eval.frechet_classifier_distance_from_activations(real, fake)),
        "is": float(tfgan.eval.classifier_score_from_logits(logits)),
    }


def torch_fidelity_kid(real, fake, subset_size):
    """Mean and standard deviation of KID by torch-fidelity."""
    import torch
    from torch_fidelity import metric_kid

    values = metric_kid.kid_features_to_metric(
        *map(torch.from_numpy, (fake, real)),
        kid_subsets=kid.SUBSETS,
        kid_subset_size=subset_size,
        verbose=False,
    )
    return {
        "kid": values[metric_kid.KEY_METRIC_KID_MEAN],
        "kid_std": values[metric_kid.KEY_METRIC_KID_STD],
    }


def ours_prdc(real, fake, logits):
    from metrics.prdc import precision_recall_density_coverage

    return precision_recall_density_coverage(real, fake)


def compute_prdc(real, fake, nearest_k):
    """Precision, recall, density and coverage by the package prdc."""
    import prdc

    with contextlib.redirect_stdout(sys.stderr):  # it prints
        return prdc.compute_prdc(real, fake, nearest_k)


def prdc_package(real, fake, logits):
    return compute_prdc(real, fake, nearest_k=3)


# Package -> its name in the table, our metrics, and its own.
ORACLES = {
    "tensorflow_gan": ("TF-GAN", fid_and_is, tfgan_fid_and_is),
    "torch_fidelity": ("torch-fidelity", fid_and_is, torch_fidelity_fid_and_is),
    "prdc": ("prdc", ours_prdc, prdc_package),
}


def main():
    print("| metric | real × generated | ours | oracle | its value | relative difference |")
    print("|---|---|---|---|---|---|")
    installed = [ORACLES[name] for name in ORACLES if importlib.util.find_spec(name)]
    for real_count, fake_count in SIZES:
        sets = *real_and_fake(real_count, fake_count, WIDTH), random_logits(3, fake_count, CLASSES)
        for oracle, ours, theirs in installed:
            expected = theirs(*sets)
            for metric, value in ours(*sets).items():
                difference = abs(value - expected[metric]) / expected[metric]
                print(
                    f"| {metric} | {real_count:,} × {fake_count:,} | {value:.9g} | {oracle} "
                    f"| {expected[metric]:.9g} | {difference:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
