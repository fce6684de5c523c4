"""Classes of Fashion-MNIST: CE, DLSM and classifier-free guidance, every one at every scale.

    python -m studies.dlsm --restore pretrained/fashion_mnist.pth

Trains classifiers against one restored score model, and makes the same score model
class-conditional, in equal steps (configs/fashion_mnist/{classifier,cfg}.py), under
results/studies. DLSM + CE has the published weights, w = 0 and coef = 1, and besides w = 1 and
coef = 0.02. One sampler draws each class in equal numbers of evaluations: for classifier guidance
an evaluation is a pass of the score and a pass and a gradient of the classifier, for
classifier-free guidance two passes of the score. Prints mean ± standard deviation over seeds of the
share of samples that the feature classifier assigns to the requested class (faithfulness), FID and
P/R/D/C of all samples, and their means over classes (CW). Plots faithfulness against CW recall.
Run again, it continues.
"""

import pathlib

import numpy as np
import torch
from absl import flags

import cli
import models
from configs.fashion_mnist import cfg
from models.trained import load_score
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir
from studies import common
from utils import require_positive

CONFIGS = "configs/fashion_mnist"
CLASSES = 10
TRAIN_IMAGES, SAMPLES = 10_000, 500
SAMPLER, SAMPLER_STEPS = "dpmpp_2m_sde", 25
METHODS = {  # name -> flags of a classifier's training, or None for classifier-free guidance
    "CE": ["--config.model.loss_type=ce"],
    "DLSM + CE, w = 0": [],
    "DLSM + 0.02 CE, w = 1": ["--config.model.weighting_dlsm=1", "--config.model.coef=0.02"],
    "classifier-free": None,
}

ONE_SEED = "DLSM + CE, w = 0"  # the method that is run with the first seed only


def with_labels(config, source, target):
    """Write a score model's EMA weights as a checkpoint of the class-conditional `config`.

    Without a label the new model equals the restored one. Returns its step.
    """
    unlabelled = config.copy_and_resolve_references()
    unlabelled.model.num_classes = None
    trained = load_score(unlabelled, source, torch.device("cpu"))
    torch.manual_seed(0)
    weights = models.create_model(config).state_dict() | trained.score.net.state_dict()
    step = trained.loaded.step or config.training.init_step
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        torch.save({"model": weights, "step": step}, file)
    return step


def class_seen(place, variant):
    """The share of samples that the feature classifier assigns to the requested class."""
    shares = []
    for label in range(CLASSES):
        paths = sorted(place.latents(label, variant).glob("*.npz"))
        logits = np.concatenate([load_npz(path, "logits")["logits"] for path in paths])
        shares.append((logits.argmax(1) == label).mean())
    return float(np.mean(shares))


def train(method, workdir, data, seed, start, start_step):
    """Train a method's network; returns the configuration and the flags of its samples."""
    FLAGS = flags.FLAGS
    own = [*data, f"--config.seed={seed}", f"--config.training.batch_size={FLAGS.batch}"]
    if METHODS[method] is None:
        steps = f"--config.training.n_iters={start_step + FLAGS.steps}"
        common.run("main.py", f"{CONFIGS}/cfg.py", workdir, *own, f"--restore={start}", steps)
        return f"{CONFIGS}/cfg_guided.py", []
    restore, steps = f"--restore={FLAGS.restore}", f"--config.training.n_iters={FLAGS.steps}"
    own += ["--model=classifier", restore, steps, *METHODS[method]]
    common.run("main.py", f"{CONFIGS}/classifier.py", workdir, *own)
    return f"{CONFIGS}/guided.py", [restore]


def measure(workdir, config, data, restore, scale):
    """Draw samples by class at a scale and measure them: a dict of floats."""
    drawn = [*data, f"--config.eval.num_samples={SAMPLES}", f"--sampler={SAMPLER}"]
    drawn += [
        f"--config.eval.num_samples_all={SAMPLES}",
        f"--config.sampling.steps={SAMPLER_STEPS}",
    ]
    variant = f"_{SAMPLER}"
    if scale != 1:
        drawn, variant = [*drawn, f"--scale={scale:g}"], f"{variant}_scale{scale:g}"
    common.run("run_lib_sampling.py", config, workdir, "--mode=full", *drawn, *restore)
    for mode in ("full", "class"):
        compare = ["--stat", "--latent", "--fidis", "--prdc", f"--mode={mode}"]
        common.run("run_lib_evaluation.py", config, workdir, *drawn, *compare)
    place = Workdir(workdir)
    recorded = place.recorded()
    classwise = common.sample_metrics(recorded, f"_class{variant}")
    return {
        "class seen": class_seen(place, variant),
        **common.sample_metrics(recorded, variant),
        **{f"CW {name}": value for name, value in classwise.items()},
    }


def draw_frontier(results, path):
    """Plot the share of classes seen against CW recall, one curve over scales per method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, by_scale in results.items():
        means = [
            [np.mean([seed[key] for seed in seeds]) for key in ("CW recall", "class seen")]
            for seeds in by_scale.values()
        ]
        x, y = np.array(means).T
        axes.plot(x, y, marker="o", label=method)
        if METHODS[method] is None or method == "CE":  # the points of DLSM are near those of CE
            for scale, *place in zip(by_scale, x, y):
                axes.annotate(f"scale {scale:g}", place, (6, 0), textcoords="offset points")
    axes.margins(x=0.15)
    axes.set(xlabel="classwise recall", ylabel="share of requested class")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    print(f"The figure is {path}.")


def main():
    FLAGS = flags.FLAGS
    root = f"studies/dlsm_{require_positive(FLAGS.steps, '--steps')}_{TRAIN_IMAGES}"
    start = Workdir(root).root / "start.pth"
    start_step = with_labels(cfg.get_config(), FLAGS.restore, start)
    images = common.part_of_fashion_mnist(cfg.get_config().data, "train", TRAIN_IMAGES)
    data = [f"--config.data.root={images}"]
    results = {method: {scale: [] for scale in FLAGS.scales} for method in FLAGS.methods}
    for seed in FLAGS.seeds:
        for method in FLAGS.methods:
            if method == ONE_SEED and seed != FLAGS.seeds[0]:
                continue
            workdir = f"{root}/seed{seed}/method{[*METHODS].index(method)}"
            config, restore = train(method, workdir, data, seed, start, start_step)
            for scale in FLAGS.scales:
                values = measure(workdir, config, data, restore, scale)
                results[method][scale].append(values)
    for scale in FLAGS.scales:
        rows = {method: by_scale[scale] for method, by_scale in results.items()}
        common.print_seeds(f"scale {scale:g}", rows, reference="CE")
    draw_frontier(results, pathlib.Path("results", root, "frontier.png"))


if __name__ == "__main__":
    flags.DEFINE_string("restore", None, "The score model's checkpoint.", required=True)
    flags.DEFINE_multi_enum("methods", list(METHODS), list(METHODS), "Which methods.")
    flags.DEFINE_multi_float("scales", [1.0, 3.0, 10.0], "Scales of the guidance.")
    common.define_seeds([0, 1, 2])
    flags.DEFINE_integer("steps", 2000, "Steps of each training.")
    flags.DEFINE_integer("batch", 32, "Batch size of each training.")
    cli.launch(main, lists=["seeds", "methods", "scales"])
