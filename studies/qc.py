"""QC on Fashion-MNIST: U, and QC with either estimator, in equal steps from the same start.

    python -m studies.qc --restore pretrained/fashion_mnist.pth --factors 0.03

Fine-tunes the restored score model in every variant, with every balancing factor and seed
(configs/fashion_mnist/qc.py), under results/studies/qc_SPLIT_STEPS_IMAGES. Measures NLL and
asymmetry of the EMA weights on test images, with the same noise for all and the skew estimator,
and the samples of three samplers against training images. Run again, it continues.
Choose factors with --split validation: other test images, and no samples.
"""

from absl import flags

import cli
from configs.fashion_mnist import qc
from storage import checkpoints
from storage.files import load_npz
from storage.workdir import Workdir
from studies import common
from utils import require_positive

CONFIG = "configs/fashion_mnist/qc.py"
SAMPLERS = {"pc": "--num_scales=50", "heun": "--steps=20", "churn": "--steps=20"}
ENDINGS = {"pc": "", "heun": "_heun", "churn": "_churn"}  # of the metrics' names, as published
SAMPLES, TRAIN_IMAGES = 300, 10_000
VARIANTS = {  # name -> the flags of training
    "U": ["--balancing_fac=0"],
    "QC-paper-1": ["--config.loss.estimator=paper", "--slices=1"],
    "QC-paper-4": ["--config.loss.estimator=paper", "--slices=4"],
    "QC-skew-1": ["--config.loss.estimator=skew", "--slices=1"],
}


def models(variants, factors):
    """The models of the study: name -> flags of training."""
    found = {}
    for variant in variants:
        if variant.startswith("QC"):
            for factor in factors:
                own = [*VARIANTS[variant], f"--balancing_fac={factor}"]
                found[f"{variant}, {factor:g}"] = own
        else:
            found[variant] = VARIANTS[variant]
    return found


def measure(workdir, scored, drawn):
    """NLL and asymmetry of a workdir's model, and the metrics of its samples: a dict of floats.

    Args:
        scored: flags of the evaluation of NLL and asymmetry.
        drawn: flags of sampling and its evaluation; none: no samples are drawn.
    """
    scored = [*scored, "--ema", "--calculate", "--read"]
    skew = "--config.loss.estimator=skew"
    common.run("run_lib_evaluation_nll.py", CONFIG, workdir, *scored)
    common.run("run_lib_evaluation_asym.py", CONFIG, workdir, skew, *scored)
    for sampler, steps in SAMPLERS.items() if drawn else ():
        own = [*drawn, f"--sampler={sampler}"]
        common.run("run_lib_sampling.py", CONFIG, workdir, *own, steps)
        compare = ["--encode", "--encode_dataset", "--fidis", "--prdc"]
        common.run("run_lib_evaluation_fidis.py", CONFIG, workdir, *own, *compare)
    recorded = Workdir(workdir).recorded()
    asym = recorded["asym_ema"]
    found = {"NLL (bits/dim)": recorded["nll_ema"]["bits_per_dim"]}
    found |= {"Asym": asym["asym"], "NAsym": asym["nasym"]}
    for sampler in SAMPLERS if drawn else ():
        metrics = common.sample_metrics(recorded, ENDINGS[sampler])
        found |= {f"{sampler}: {name}": value for name, value in metrics.items()}
    return found


def draw(results, levels, path):
    """Plot NAsym against the noise level, and NLL against NAsym; one colour per model.

    Args:
        results: model -> for each seed the numbers by name.
        levels: model -> times (L,) and NAsym at each, of one seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for model, seeds in results.items():
        left.semilogy(*levels[model], label=model)
        points = [(seed["NAsym"], seed["NLL (bits/dim)"]) for seed in seeds]
        right.plot(*zip(*points), "o", label=model)
    left.set(xlabel="time t of the noise level", ylabel="NAsym")
    right.set(xlabel="NAsym, mean over noise levels", ylabel="NLL (bits/dim)")
    right.ticklabel_format(axis="x", scilimits=(0, 0))
    right.legend()
    figure.savefig(path, dpi=160)
    print(f"The figure is {path}.")


def main():
    FLAGS = flags.FLAGS
    config = qc.get_config()
    tested = common.part_of_fashion_mnist(config.data, FLAGS.split, FLAGS.images)
    trained = common.part_of_fashion_mnist(config.data, "train", TRAIN_IMAGES)
    content, first = checkpoints.read(FLAGS.restore), config.training.init_step
    last = checkpoints.read_count(content, "step", FLAGS.restore, first)
    last += require_positive(FLAGS.steps, "--steps")
    root = f"--config.data.root={tested}"
    train = [f"--restore={FLAGS.restore}", root, f"--config.training.n_iters={last}"]
    train.append(f"--config.training.batch_size={FLAGS.batch}")
    drawn = [
        f"--config.data.root={trained}",
        f"--config.eval.num_samples={SAMPLES}",
        "--config.eval.batch_size=100",
    ]
    if FLAGS.split == "validation":
        drawn = []
    folder = f"studies/qc_{FLAGS.split}_{FLAGS.steps}_{FLAGS.images}"
    results, levels = {}, {}
    for seed in FLAGS.seeds:
        for name, own in models(FLAGS.variants, FLAGS.factors).items():
            workdir = f"{folder}/{name.replace(', ', '-')}-seed{seed}"
            common.run("main.py", CONFIG, workdir, *own, *train, f"--config.seed={seed}")
            results.setdefault(name, []).append(measure(workdir, [root], drawn))
            of_levels = load_npz(Workdir(workdir).asym(0, ema=True), "times", "nasym")
            levels[name] = of_levels["times"], of_levels["nasym"]
    common.print_seeds("model", results, reference="U")
    draw(results, levels, Workdir(folder).root / "frontier.png")


if __name__ == "__main__":
    flags.DEFINE_string("restore", None, "The score model's checkpoint.", required=True)
    flags.DEFINE_multi_enum("variants", list(VARIANTS), list(VARIANTS), "Which models.")
    flags.DEFINE_multi_float("factors", [0.03], "Values of balancing_fac.")
    common.define_seeds([0, 1, 2])
    flags.DEFINE_integer("steps", 240, "Steps of each training.")
    flags.DEFINE_integer("batch", 32, "Batch size of each training.")
    flags.DEFINE_enum("split", "test", ["test", "validation"], "What NLL and asymmetry are of.")
    flags.DEFINE_integer("images", 256, "Images of NLL and asymmetry.")
    cli.launch(main, lists=("variants", "factors", "seeds"))
