"""QC on Fashion-MNIST: U, QC with either estimator, and C, at equal steps from the same start.

python -m benchmarks.study_qc --restore CHECKPOINT [--variants NAME …] [--factors F …]
    [--seeds S …] [--steps N] [--split test|validation] [--images N] [--samplers NAME …]
    [-- FLAG …]

Fine-tunes the restored score model in every variant and with every balancing factor and seed,
configs/fashion_mnist/qc.py, in N steps, under results/studies/qc_SPLIT_STEPS_IMAGES. Measures the
averaged weights on N images of the test set, with the same noises for all and the asymmetry by the
skew estimator, and the samples of each sampler against the training images. Prints Markdown tables,
mean ± standard deviation over seeds. The FLAGs, overrides of fields as
``--config.training.batch_size=16``, go to every command. Factors are to be chosen with ``--split
validation --seeds 0``.
"""

import argparse

from benchmarks import studies
from configs.fashion_mnist import qc
from storage import checkpoints
from storage.workdir import Workdir
from utils import require_positive

CONFIG = "configs/fashion_mnist/qc.py"
# The flags of training, and those of every command.
VARIANTS = {
    "U": (["--balancing_fac=0"], []),
    "QC-paper-1": (["--config.loss.estimator=paper", "--slices=1"], []),
    "QC-paper-4": (["--config.loss.estimator=paper", "--slices=4"], []),
    "QC-skew-1": (["--config.loss.estimator=skew", "--slices=1"], []),
    "C": (["--balancing_fac=0"], ["--config.model.energy=True"]),
}


def rows_of(variants, factors):
    """Yields the rows of the table: (name, flags of training, flags of all)."""
    for name in variants:
        training, every = VARIANTS[name]
        if not name.startswith("QC"):
            yield name, training, every
            continue
        for factor in factors:
            yield f"{name}, {factor:g}", [*training, f"--balancing_fac={factor}"], every


def measure(run, workdir, training, every, samplers):
    """Train a model and measure it: {sampler: metrics}, and those of the score under ""."""
    run("main.py", CONFIG, workdir, *training, *every)
    scored = [*every, "--ema", "--calculate", "--read"]
    run("run_lib_evaluation_nll.py", CONFIG, workdir, *scored)
    run("run_lib_evaluation_asym.py", CONFIG, workdir, "--config.loss.estimator=skew", *scored)
    recorded = Workdir(workdir).recorded()
    found = {
        "": {
            "NLL (bits/dim)": recorded["nll"]["bits_per_dim"],
            "Asym": recorded["asym"]["asym"],
            "NAsym": recorded["asym"]["nasym"],
        }
    }
    for sampler in samplers:
        own = [*every, f"--sampler={sampler}"]
        run("run_lib_sampling.py", CONFIG, workdir, *own, *studies.SAMPLER_FLAGS.get(sampler, ()))
        compare = ["--encode", "--encode_dataset", "--fidis", "--prdc"]
        run("run_lib_evaluation_fidis.py", CONFIG, workdir, *own, *compare)
        found[sampler] = studies.sample_metrics(workdir, sampler)
    return found


def main(arguments):
    require_positive(arguments.steps, "--steps")
    first = qc.get_config().training.init_step
    content = checkpoints.read(arguments.restore)
    last = checkpoints.read_count(content, "step", arguments.restore, first) + arguments.steps
    folder = f"studies/qc_{arguments.split}_{arguments.steps}_{arguments.images}"
    root = studies.part_of_test_set(arguments.root, arguments.split, arguments.images)
    run = studies.Commands(arguments.flags, [CONFIG], root)
    studies.begin(folder, arguments.restore, arguments.flags)
    results = {}
    for seed in arguments.seeds:
        for name, training, every in rows_of(arguments.variants, arguments.factors):
            workdir = f"{folder}/{name.replace(', ', '-')}-seed{seed}"
            flags = [*training, f"--restore={arguments.restore}", f"--config.seed={seed}"]
            flags.append(f"--config.training.n_iters={last}")
            found = measure(run, workdir, flags, every, arguments.samplers)
            for kind, values in found.items():
                results.setdefault(kind, {}).setdefault(name, []).append(values)
    for kind, rows in results.items():
        studies.print_table(kind or "model", rows)


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restore", required=True, help="the score model's checkpoint")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--factors", nargs="*", type=float, default=[0.03])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    training = qc.get_config().training
    steps = training.n_iters - training.init_step
    parser.add_argument("--steps", type=int, default=steps, help="of each training")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--images", type=int, default=500, help="of the test set")
    parser.add_argument("--samplers", nargs="*", default=["pc", "heun", "churn"])
    parser.add_argument("--root", default="data", help="where fashion_mnist/ lies")
    parser.add_argument("flags", nargs="*", help="of every command, after --")
    return parser.parse_args(words)


if __name__ == "__main__":
    studies.launch(main, parse())
