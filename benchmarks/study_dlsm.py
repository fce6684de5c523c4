"""Classes of Fashion-MNIST: guided by ce, ce at scale 10, DLSM + ce, and without a classifier.

python -m benchmarks.study_dlsm --restore CHECKPOINT [--steps N] [--seeds S …] [--sampler NAME]
    [--cfg_scales W …] [--train_images N] [-- FLAG …]

Against one restored score model it trains classifiers, and makes the same score model
class-conditional (CFG; its label embedding begins at zero), for each seed and equal steps, with
configs/fashion_mnist/{classifier,cfg}.py, under results/studies/dlsm. DLSM + ce has the published
weights, w = 0 and coef = 1, and besides w = 1 and coef = 0.02, by which it is ahead on the digits
(docs/dlsm.md). Draws samples by class with one sampler and grid. Prints, mean ± standard deviation
over seeds: FID and P/R/D/C of all samples and as means over classes (CW), CAS, and the share of
samples in which the feature classifier, which was trained on the real training images, sees the
class asked for. The FLAGs, overrides of fields as ``--config.training.batch_size=16``, go to every
command whose configuration has the field.

A step of a classifier's guidance takes a pass of the score and a pass and a gradient of the
classifier; one without a classifier takes two passes of the score. Either counts as one evaluation.
The class-conditional score has been trained further than the one that the classifiers guide: part
of what sets them apart may be that.
"""

import argparse
import json
import pathlib

import ml_collections
import numpy as np
import torch

import models
from benchmarks import studies
from storage import checkpoints
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir
from utils import UserError

CONFIGS = "configs/fashion_mnist"
CLASSES = 10
WEIGHTS = ["--config.model.weighting_dlsm=1", "--config.model.coef=0.02"]


def with_labels(source, target):
    """Write a score model's checkpoint as that of a class-conditional one, labels at zero.

    The optimiser's moments are left out.

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
    made = {"model": model | new}
    if "step" in content:
        made["step"] = content["step"]
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


def steps_flag(steps, first=0):
    """The flags of a training that takes `steps` steps after step `first`, or as configured."""
    return [] if steps is None else [f"--config.training.n_iters={first + steps}"]


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


def of_seed(run, arguments, start, seed):
    """Yields (row, measured values) of a seed."""
    place, sampler = f"studies/dlsm/seed{seed}", arguments.sampler
    guided, restore = f"{CONFIGS}/guided.py", f"--restore={arguments.restore}"
    train = ["--model=classifier", restore, f"--config.seed={seed}"]
    train += steps_flag(arguments.steps)
    base, scale, ours, weighted = (
        f"{place}/{name}" for name in ("base", "scale", "ours", "weighted")
    )
    run("main.py", f"{CONFIGS}/classifier.py", base, *train, "--config.model.loss_type=ce")
    run("main.py", f"{CONFIGS}/classifier.py", ours, *train)
    run("main.py", f"{CONFIGS}/classifier.py", weighted, *train, *WEIGHTS)
    by_base = f"--restore_classifier={Workdir(base).checkpoint()}"
    yield "ce", measure(run, base, guided, seed, sampler, restore)
    yield "ce, scale 10", measure(run, scale, guided, seed, sampler, restore, by_base, "--scale=10")
    yield "DLSM + ce", measure(run, ours, guided, seed, sampler, restore)
    yield "DLSM + 0.02 ce, w = 1", measure(run, weighted, guided, seed, sampler, restore)

    trained = f"{place}/cfg"
    train = [f"--restore={start}", f"--config.seed={seed}"]
    train += steps_flag(arguments.steps, checkpoints.read(start)["step"])
    run("main.py", f"{CONFIGS}/cfg.py", trained, *train)
    own = f"--restore={Workdir(trained).checkpoint()}"
    for w in arguments.cfg_scales:
        flags = [own, f"--scale={w}"]
        values = measure(
            run, f"{trained}_w{w:g}", f"{CONFIGS}/cfg_guided.py", seed, sampler, *flags
        )
        yield f"CFG, w = {w:g}", values


def main(arguments):
    root = arguments.root
    if arguments.train_images is not None:
        root = studies.part_of_training_set(root, arguments.train_images)
    names = ("classifier", "guided", "cfg", "cfg_guided", "cas")
    run = studies.Commands(
        [f"--config.data.root={root}", *arguments.flags],
        [f"{CONFIGS}/{name}.py" for name in names],
    )
    start = pathlib.Path("results/studies/dlsm/start.pth")
    with_labels(arguments.restore, start)
    results, real = {}, []
    for seed in arguments.seeds:
        for name, values in of_seed(run, arguments, start, seed):
            results.setdefault(name, []).append(values)
        base = f"studies/dlsm/seed{seed}/base"
        real.append({"CAS": accuracy(run, base, seed, "--setup=real")})
    studies.print_table("samples", results)
    studies.print_table("images", {"real training images": real})


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restore", required=True, help="the score model's checkpoint")
    parser.add_argument("--steps", type=int, help="of each training; without it, as configured")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--sampler", default="dpmpp_2m_sde")
    parser.add_argument("--cfg_scales", nargs="*", type=float, default=[1.0, 2.0])
    parser.add_argument("--root", default="data", help="where fashion_mnist/ lies")
    parser.add_argument("--train_images", type=int, help="the first of them; without it, all")
    parser.add_argument("flags", nargs="*", help="of every command, after --")
    return parser.parse_args(words)


if __name__ == "__main__":
    studies.launch(main, parse())
