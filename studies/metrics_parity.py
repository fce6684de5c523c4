"""The parity table of docs/metrics.md, and what precision and its kin cost in time and memory.

``python -m benchmarks.parity_metrics`` compares with the reference implementations that this
environment has: torch-fidelity and prdc, or TF-GAN in that of ``requirements-tfgan.txt``.
``python -m benchmarks.parity_metrics --cost`` measures 10,000 samples beside prdc, then 50,000.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import time

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


def print_parity(sizes):
    oracles = {
        "tensorflow_gan": ("TF-GAN", evaluation.tfgan_fid_and_is),
        "torch_fidelity": ("torch-fidelity", torch_fidelity_fid_and_is),
    }
    print("| metric | real × generated | ours | oracle | its value | relative difference |")
    print("|---|---|---|---|---|---|")
    for real_count, fake_count in sizes:
        real, fake = real_and_fake(real_count, fake_count, WIDTH)
        logits = random_logits(3, fake_count, CLASSES)
        rows = []
        ours = evaluation.fid_and_is(real, fake, logits)
        for package, (oracle, metric) in oracles.items():
            if importlib.util.find_spec(package):
                rows.append((oracle, ours, metric(real, fake, logits)))
        if importlib.util.find_spec("prdc"):
            ours = prdc.precision_recall_density_coverage(real, fake)
            rows.append(("prdc", ours, prdc.prdc_package(real, fake)))
        for oracle, ours, theirs in rows:
            for metric, value in ours.items():
                difference = abs(value - theirs[metric]) / theirs[metric]
                print(
                    f"| {metric} | {real_count:,} × {fake_count:,} | {value:.9g} | {oracle} "
                    f"| {theirs[metric]:.9g} | {difference:.1e} |",
                    flush=True,
                )


def cost(metric, count):
    """Seconds, and bytes at the peak above libraries and inputs, of a metric on `count` pairs."""
    real, fake = real_and_fake(count, count, WIDTH)
    metric(real[:16], fake[:16])  # imports are not the metric's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    values = metric(real, fake)
    seconds = time.perf_counter() - start
    return seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), values


def print_cost():
    print("| | real × generated | seconds | GiB above the inputs | values |")
    print("|---|---|---|---|---|")
    ours = prdc.precision_recall_density_coverage
    runs = ("prdc", prdc.prdc_package, 10_000), ("ours", ours, 10_000), ("ours", ours, 50_000)
    for name, metric, count in runs:
        # A process for each, because a process's peak never falls.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak, values = pool.apply(cost, (metric, count))
        text = ", ".join(f"{metric} {value:.6f}" for metric, value in values.items())
        line = f"| {name} | {count:,} × {count:,} | {seconds:.1f} | {peak / 2**30:.2f} | {text} |"
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cost", action="store_true", help="measure time and memory instead")
    if parser.parse_args().cost:
        print_cost()
    else:
        print_parity(SIZES)
