"""Classes of Fashion-MNIST: guided by ce, ce at scale 10, DLSM + ce, and without a classifier.

python -m benchmarks.study_dlsm --restore CHECKPOINT [--steps N] [--seeds S …] [--sampler NAME]
    [--cfg_scales W …] [--train_images N] [-- FLAG …]

Against one restored score model it trains classifiers, and makes the same score model
class-conditional (CFG; without a label it begins as that score), for each seed and in so many
steps, with configs/fashion_mnist/{classifier,cfg}.py, under results/studies. DLSM + ce has the
published weights, w = 0 and coef = 1, and besides w = 1 and coef = 0.02, whose likelihood scores
are ahead on the digits (docs/dlsm.md). Draws samples by class with one sampler and grid. Prints,
mean ± standard deviation over seeds: FID and P/R/D/C of all samples and as means over classes (CW),
CAS, and the share of samples in which the feature classifier, which was trained on the real
training images, sees the class asked for; and draws a figure of each class's first samples. With
--train_images all of that, but the restored score model's training, is on the first images of the
training set. The FLAGs, overrides of fields as ``--config.training.batch_size=16``, go to every
command whose configuration has the field.

A step of a classifier's guidance takes a pass of the score and a pass and a gradient of the
classifier; one without a classifier takes two passes of the score. Either counts as one evaluation.
The class-conditional score has been trained further than the one that the classifiers guide: part
of what sets them apart may be that.
"""

import argparse
import json

import ml_collections
import numpy as np
import torch
from matplotlib.figure import Figure

import models
from benchmarks import studies
from configs.fashion_mnist import cfg, classifier
from experiments import common
from storage import checkpoints
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir
from utils import UserError, require_positive

CONFIGS = "configs/fashion_mnist"
CLASSES = 10
EACH = 3  # samples of a class in the figure
WEIGHTS = ["--config.model.weighting_dlsm=1", "--config.model.coef=0.02"]


def with_labels(source, target):
    """Write a score model's checkpoint as that of a class-conditional one.

    The optimiser's moments are left out. Where the file does not say its step, it gets the
    configuration's.

    Raises:
        UserError: the file does not say which configuration it was trained with.
    """
    content = checkpoints.read(source)
    if "config" not in content:
        raise UserError(f"{source} does not say which configuration it was trained with.")
    config = ml_collections.ConfigDict(json.loads(content["config"]))
    config.model.num_classes = CLASSES
    network = models.create_model(config)
    own = network.state_dict()
    model = {name.removeprefix("module."): array for name, array in content["model"].items()}
    new = {name: array for name, array in own.items() if name not in model}
    first = cfg.get_config().training.init_step
    made = {"model": model | new, "step": checkpoints.read_count(content, "step", source, first)}
    if "ema" in content:
        shadows = iter(content["ema"]["shadow_params"])
        trained = [name for name, p in network.named_parameters() if p.requires_grad]
        shadows = [new[name] if name in new else next(shadows) for name in trained]
        made["ema"] = {**content["ema"], "shadow_params": shadows}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        torch.save(made, file)


def recognised(workdir, sampler):
    """The share of samples in which the feature classifier sees the class asked for."""
    place, shares = Workdir(workdir), []
    for label in range(CLASSES):
        paths = sorted(place.latents(label, sampler).glob("*.npz"))
        logits = np.concatenate([load_npz(path, "logits")["logits"] for path in paths])
        shares.append((logits.argmax(1) == label).mean())
    return float(np.mean(shares))


def start_of(root):
    """Where the class-conditional score model lies that a study's trainings begin with."""
    return Workdir(root).root / "start.pth"


def measure(run, workdir, config, seed, sampler, *flags):
    """Draw by class and measure: a dict of floats."""
    own = f"--sampler={sampler}"
    run("run_lib_sampling.py", config, workdir, "--mode=full", own, *flags)
    for mode in ("full", "class"):
        compare = ["--stat", "--latent", "--fidis", "--prdc", f"--mode={mode}"]
        run("run_lib_evaluation.py", config, workdir, own, *compare)
    samples = Workdir(workdir).class_samples(0, sampler).parent
    found = studies.sample_metrics(workdir, sampler)
    classwise = studies.sample_metrics(workdir, sampler, "class")
    found |= {f"CW {name}": value for name, value in classwise.items()}
    found["CAS"] = accuracy(run, workdir, seed, f"--samples={samples}")
    return {**found, "recognised": recognised(workdir, sampler)}


def accuracy(run, workdir, seed, source):
    """CAS of ``--samples=DIR`` or ``--setup=real``."""
    flags = [source, f"--config.seed={seed}"]
    run("run_lib_evaluation_cas.py", f"{CONFIGS}/cas.py", workdir, *flags)
    name = "real" if source == "--setup=real" else "samples"
    return Workdir(workdir).recorded()[f"cas_{name}"]["accuracy"]


def of_seed(run, arguments, root, seed):
    """Yields (row, workdir, measured values) of a seed, whose workdirs lie in the folder `root`."""
    place, sampler = f"{root}/seed{seed}", arguments.sampler
    guided, restore = f"{CONFIGS}/guided.py", f"--restore={arguments.restore}"
    train = ["--model=classifier", restore, f"--config.seed={seed}"]
    train.append(f"--config.training.n_iters={arguments.steps}")
    base, scale, ours, weighted = (
        f"{place}/{name}" for name in ("base", "scale", "ours", "weighted")
    )
    run("main.py", f"{CONFIGS}/classifier.py", base, *train, "--config.model.loss_type=ce")
    run("main.py", f"{CONFIGS}/classifier.py", ours, *train)
    run("main.py", f"{CONFIGS}/classifier.py", weighted, *train, *WEIGHTS)
    by_base = f"--restore_classifier={Workdir(base).checkpoint()}"
    for name, workdir, flags in (
        ("ce", base, []),
        ("ce, scale 10", scale, [by_base, "--scale=10"]),
        ("DLSM + ce", ours, []),
        ("DLSM + 0.02 ce, w = 1", weighted, []),
    ):
        yield name, workdir, measure(run, workdir, guided, seed, sampler, restore, *flags)

    trained, start = f"{place}/cfg", start_of(root)
    train = [f"--restore={start}", f"--config.seed={seed}"]
    last = checkpoints.read(start)["step"] + arguments.steps
    run("main.py", f"{CONFIGS}/cfg.py", trained, *train, f"--config.training.n_iters={last}")
    own = f"--restore={Workdir(trained).checkpoint()}"
    for w in arguments.cfg_scales:
        workdir, flags = f"{trained}_w{w:g}", [own, f"--scale={w}"]
        values = measure(run, workdir, f"{CONFIGS}/cfg_guided.py", seed, sampler, *flags)
        yield f"CFG, w = {w:g}", workdir, values


def draw_classes(rows, sampler):
    """A figure of the first `EACH` samples of each class, a line for each (row, workdir)."""
    figure = Figure(figsize=(12, 0.75 * len(rows)), layout="constrained")
    for axes, (name, workdir) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows):
        place, images = Workdir(workdir), []
        for label in range(CLASSES):
            path = place.class_samples(label, sampler) / "samples_0.npz"
            images.extend(load_npz(path, "samples")["samples"][:EACH, ..., 0])
        axes.imshow(np.concatenate(images, axis=1), cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(name, loc="left", fontsize=8)
        axes.set_axis_off()
    return figure


def main(arguments):
    require_positive(arguments.steps, "--steps")
    data_root, root = arguments.root, f"studies/dlsm_{arguments.steps}"
    if arguments.train_images is not None:
        data_root = studies.part_of_training_set(data_root, arguments.train_images)
        root += f"_{arguments.train_images}"
    names = ("classifier", "guided", "cfg", "cfg_guided", "cas")
    run = studies.Commands(arguments.flags, [f"{CONFIGS}/{name}.py" for name in names], data_root)
    studies.begin(root, arguments.restore, arguments.flags)
    with_labels(arguments.restore, start_of(root))
    results, real, shown = {}, [], []
    for seed in arguments.seeds:
        for name, workdir, values in of_seed(run, arguments, root, seed):
            if seed == arguments.seeds[0]:
                shown.append((name, workdir))
            results.setdefault(name, []).append(values)
        base = f"{root}/seed{seed}/base"
        real.append({"CAS": accuracy(run, base, seed, "--setup=real")})
    studies.print_table("samples", results)
    studies.print_table("images", {"real training images": real})
    path = common.save_figure(Workdir(root), "classes", draw_classes(shown, arguments.sampler))
    print(f"Samples of each class, of the first seed: {path}")


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restore", required=True, help="the score model's checkpoint")
    steps = classifier.get_config().training.n_iters
    parser.add_argument("--steps", type=int, default=steps, help="of each training")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--sampler", default="dpmpp_2m_sde")
    parser.add_argument("--cfg_scales", nargs="*", type=float, default=[1.0, 2.0])
    parser.add_argument("--root", default="data", help="where fashion_mnist/ lies")
    parser.add_argument("--train_images", type=int, help="the first of them; without it, all")
    parser.add_argument("flags", nargs="*", help="of every command, after --")
    return parser.parse_args(words)


if __name__ == "__main__":
    studies.launch(main, parse())
