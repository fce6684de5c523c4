"""What QC fine-tuning changes, by estimator and number of slices, at equal steps.

python -m benchmarks.qc_effect --config configs/demo/digits_qc.py --workdir qc_effect \
    --restore results/demo/checkpoints/checkpoint.pth --config.training.n_iters=2650 \
    --config.training.batch_size=8 --config.optim.lr=6e-4 --config.loss.balancing_fac=0.1

Fine-tunes the restored model without the regulariser (U) and with either estimator, three seeds
each, under results/qc_effect; run again, it continues. Prints a Markdown table of bits/dim, Asym
and NAsym of the averaged weights, mean ± standard deviation over the seeds, all of them measured
with the same noise and the skew estimator.
"""

import numpy as np
from absl import flags

import cli
import run_lib
from metrics import nll_and_asym

RUNS = {  # name: (estimator, slices), or none for U
    "U": None,
    "QC-paper, K = 1": ("paper", 1),
    "QC-paper, K = 4": ("paper", 4),
    "QC-paper, K = 16": ("paper", 16),
    "QC-skew, K = 1": ("skew", 1),
}
SEEDS = (0, 1, 2)


def run(config, workdir, restore, regulariser, seed):
    """Train one model and measure it: bits/dim, Asym and NAsym."""
    training, evaluation = (
        config.copy_and_resolve_references(),
        config.copy_and_resolve_references(),
    )
    training.seed = seed
    if regulariser is None:
        training.loss.balancing_fac = 0.0
    else:
        training.loss.estimator, training.loss.slices = regulariser
    evaluation.loss.estimator, evaluation.loss.slices = "skew", 1
    run_lib.train(training, workdir, restore=restore)
    nll_and_asym.calculate_nll(evaluation, workdir, use_ema=True)
    nll_and_asym.calculate_asym(evaluation, workdir, use_ema=True)
    nll, asym = nll_and_asym.read_nll(workdir), nll_and_asym.read_asym(workdir)
    return nll["bits_per_dim"], asym["asym"], asym["nasym"]


def main():
    FLAGS = flags.FLAGS
    values = {name: [] for name in RUNS}
    for seed in SEEDS:
        for name, regulariser in RUNS.items():
            workdir = f"{FLAGS.workdir}/{name.replace(', K = ', '-')}-seed{seed}"
            result = run(FLAGS.config, workdir, FLAGS.restore, regulariser, seed)
            values[name].append(result)
    rows = []
    for name, results in values.items():
        means, spreads = np.mean(results, axis=0), np.std(results, axis=0, ddof=1)
        cells = " | ".join(f"{m:.4g} ± {s:.2g}" for m, s in zip(means, spreads))
        rows.append(f"| {name} | {cells} |")
    print("| model | NLL (bits/dim) | Asym | NAsym |")
    print("|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_string("restore", None, "Checkpoint to fine-tune.", required=True)
    cli.launch(main)
