"""FID, IS and P/R/D/C beside the reference implementations: the table of docs/metrics.md.

    python -m studies.metrics_parity

Compares with those that this environment has: torch-fidelity and prdc, or TF-GAN in that of
``requirements-tfgan.txt``.
"""

import importlib.util

import numpy as np

import evaluation
from metrics import prdc

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


def torch_fidelity_fid_and_is(real, fake, logits):
    """What `evaluation.fid_and_is` returns, computed by torch-fidelity; the score on one split."""
    import torch
    from torch_fidelity import metric_fid, metric_isc

    statistics = (metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake))
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    score = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=1)
    return {
        "fid": fid[metric_fid.KEY_METRIC_FID],
        "is": score[metric_isc.KEY_METRIC_ISC_MEAN],
    }


def main():
    print("| metric | real × generated | ours | oracle | its value | relative difference |")
    print("|---|---|---|---|---|---|")
    for real_count, fake_count in SIZES:
        real, fake = real_and_fake(real_count, fake_count, WIDTH)
        sets = real, fake, random_logits(3, fake_count, CLASSES)
        oracles = {  # package -> its name, our metric, its metric, and what both take
            "tensorflow_gan": ("TF-GAN", evaluation.fid_and_is, evaluation.tfgan_fid_and_is, sets),
            "torch_fidelity": (
                "torch-fidelity",
                evaluation.fid_and_is,
                torch_fidelity_fid_and_is,
                sets,
            ),
            "prdc": (
                "prdc",
                prdc.precision_recall_density_coverage,
                prdc.prdc_package,
                (real, fake),
            ),
        }
        for package, (oracle, ours, theirs, arrays) in oracles.items():
            if not importlib.util.find_spec(package):
                continue
            expected = theirs(*arrays)
            for metric, value in ours(*arrays).items():
                difference = abs(value - expected[metric]) / expected[metric]
                print(
                    f"| {metric} | {real_count:,} × {fake_count:,} | {value:.9g} | {oracle} "
                    f"| {expected[metric]:.9g} | {difference:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
