"""What a folder of images asks of a score model, and a configuration for it.

python -m scripts.own_images DIR [--size 64] [--holdout 0.1] [--config_file configs/own.py]

`DIR` is laid out as the data set ``folder``: images, or a directory of them for each class, there
or in ``train/``. Without a directory ``test`` a share of them is held out. Steps, batch and counts
follow from the number of images, the network from the device. The noise levels are those of Song
and Ermon, "Improved Techniques for Training Score-Based Generative Models" (NeurIPS 2020): σ_max is
the largest distance of two images (technique 1), the ratio γ of neighbouring levels lets them
overlap (technique 2), and Langevin's steps keep each level's variance (technique 4).
"""

import collections
import dataclasses
import math
import os
import pathlib
import sys

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm
from tqdm import tqdm

import cli
import datasets
import planning
from configs import common
from readers.common import MissingSplit
from readers.folder import IMAGE_FORMATS, folder, training_images
from storage.files import atomic_write
from training.score import ScoreTraining
from utils import UserError, get_device

MOST = 5000  # images that are compared with each other
SIGMA_MIN = 0.01
# Steps at each noise level that the paper takes, and its overlap of neighbouring levels.
LANGEVIN_STEPS, OVERLAP = 5, 0.5
USUAL_SCALES = 1000  # of the published configurations
MULTIPLE = 8  # of which a side must be, to be halved three times
CPU_SIDE = 32  # of images that a network learns on a CPU in minutes
CONFIG = '''"""NCSN++ on the images in {root}."""

from configs import common


def get_config():
    return common.own_images(
        {root!r},
        {size},
        {channels},
        {fields},
    )
'''


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Attributes:
        sizes: (W, H) of the training images, with their counts.
        classes: their names; empty where there are none.
        channels: 1 if all are grey, else 3.
        held_out: how many images the test split has.
    """

    sizes: collections.Counter
    classes: tuple[str, ...]
    channels: int
    held_out: int


def look(root: pathlib.Path, holdout: float) -> Found:
    """What the training and the test images in `root` are.

    Raises:
        UserError: as `readers.folder.folder`; or a file is no image.
    """
    data = _data(root, MULTIPLE, 3, holdout)
    source, place = folder(data, "train"), pathlib.Path(training_images(root))
    sizes, modes = collections.Counter(), set()
    for line in source.files:
        path = place / line.rsplit(" ", 1)[0]
        try:
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                sizes[image.size] += 1
                modes.add(image.mode)
        except Exception as error:  # PIL raises nearly anything on a damaged file
            raise UserError(f"{path} cannot be read as an image ({error}).") from None
    try:
        held_out = len(folder(data, "test").files)
    except MissingSplit:
        held_out = 0
    return Found(sizes, source.class_names, 1 if modes <= {"1", "L", "LA"} else 3, held_out)


def _data(root, size, channels, holdout):
    config = common.base("folder").data
    config.root, config.image_size, config.num_channels = str(root), size, channels
    config.holdout = holdout
    return config


def largest_distance(images: np.ndarray) -> tuple[float, int]:
    """The largest Euclidean distance of two images in [0, 1], of at most MOST of them.

    Args:
        images: uint8 (N, C, H, W).

    Returns:
        The distance, and how many images were compared.
    """
    chosen = np.random.default_rng(0).permutation(len(images))[:MOST]
    x = torch.from_numpy(images[np.sort(chosen)]).flatten(1).float() / 255
    # Without the mean the products are small, and so is what float32 rounds of them.
    x -= x.mean(0)
    return max(float(torch.cdist(part, x).max()) for part in x.split(256)), len(x)


def ratio_of_levels(dimensions: int) -> float:
    """γ with Φ(√(2D)(γ−1) + 3γ) − Φ(√(2D)(γ−1) − 3γ) = OVERLAP in D dimensions (technique 2)."""

    def excess(gamma):
        shift = math.sqrt(2 * dimensions) * (gamma - 1)
        return norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma) - OVERLAP

    return brentq(excess, 1, 100)


def number_of_levels(sigma_max: float, ratio: float) -> int:
    """Levels of a geometric progression from `sigma_max` to SIGMA_MIN."""
    return math.ceil(math.log(sigma_max / SIGMA_MIN) / math.log(ratio)) + 1


def step_size(ratio: float, steps: int = LANGEVIN_STEPS) -> float:
    """e = ε/σ_L² whose `steps` Langevin steps leave a level's variance nearest to σ² (technique 4).

    The variance is σ² times (1−e)^2T (γ² − c) + c with c = 2/(2−e).
    """

    def deviation(e):
        c = 2 / (2 - e)
        return abs((1 - e) ** (2 * steps) * (ratio**2 - c) + c - 1)

    return minimize_scalar(deviation, bounds=(0, 1), options={"xatol": 1e-8}).x


def noise_settings(largest: float, size: int, channels: int) -> dict[str, float]:
    """The noise levels of `common.own_images` for images of this size and largest distance."""
    ratio = ratio_of_levels(channels * size**2)
    sigma_max = max(1.0, float(f"{largest:.3g}"))
    # The steps of the corrector `langevin` are 2(snr·σ)².
    snr = math.sqrt(step_size(ratio) / 2)
    return {
        "sigma_max": sigma_max,
        "num_scales": max(USUAL_SCALES, number_of_levels(sigma_max, ratio)),
        "snr": float(f"{snr:.2g}"),
    }


def cost(config: ConfigDict) -> str:
    """What training takes, in words."""
    training, device = config.training, get_device(config.device)
    flops, fixed, each = planning.step_of(ScoreTraining(config, device), images=2)
    step = flops * training.batch_size
    return (
        f"{training.n_iters:,} steps of {training.batch_size} images on {device}, "
        f"{tqdm.format_sizeof(step, 'FLOP')} each and "
        f"{tqdm.format_sizeof(step * training.n_iters, 'FLOP')} in all; memory "
        f"{planning.in_bytes(fixed + each * training.batch_size)}"
    )


def print_commands(run: str, encode: str) -> None:
    """Print how to train, sample and evaluate `run`, flags; `encode` are those of the features."""
    print(f"  python main.py {run}")
    print(f"  python run_lib_sampling.py {run}")
    print(f"  python run_lib_evaluation.py {run} {encode} --kid")


def describe(
    root: str | os.PathLike,
    size: int | None = None,
    target: str | os.PathLike | None = None,
    holdout: float = 0.1,
) -> pathlib.Path:
    """Print what is in `root` and what a score model of it takes; write a configuration.

    Args:
        size: side of the images that are modelled; None: what all images hold, on a CPU at most
            CPU_SIDE.
        target: the configuration's file; None: ``configs/own_{name of the folder}.py``.
        holdout: the share of the images that is held out where there is no directory ``test``.

    Returns:
        The configuration's path.

    Raises:
        UserError: the folder is not laid out as expected, or the size is none.
    """
    root = pathlib.Path(root).resolve()
    name = "".join(c if c.isalnum() else "_" for c in root.name)
    path = pathlib.Path(target or f"configs/own_{name}.py")
    if path.exists():
        raise UserError(f"{path} exists; name another file with --config_file.")
    if not 0 <= holdout < 1:
        raise UserError(f"--holdout is {holdout}; expected a share from 0 to below 1.")
    holdout = 0.0 if (root / "test").is_dir() else holdout
    found = look(root, holdout)
    smallest, on_cpu = min(map(min, found.sizes)), get_device("auto").type == "cpu"
    if size is None:
        size = min(smallest, CPU_SIDE if on_cpu else smallest) // MULTIPLE * MULTIPLE
    if size < MULTIPLE or size % MULTIPLE:
        raise UserError(
            f"The images would be of {size}×{size} pixels; expected a multiple of {MULTIPLE}. The "
            f"smallest side in {root} is {smallest}; give --size."
        )
    count, channels, classes = found.sizes.total(), found.channels, found.classes
    shapes = ", ".join(f"{w}×{h} ({n})" for (w, h), n in found.sizes.most_common(5))
    kinds = f" in {len(classes)} classes" if classes else ""
    print(f"{root}: {count} training images{kinds}, and {found.held_out} that are held out")
    print(f"sizes: {shapes}{', …' if len(found.sizes) > 5 else ''}; channels: {channels}")
    print(f"modelled: {channels}×{size}×{size}, cropped about the centre and resized")
    # Both splits are decoded, so that a damaged file is found now and not after training.
    train, _ = datasets.load_both(_data(root, size, channels, holdout))
    largest, compared = largest_distance(train.images)
    print(f"largest distance of two of {compared} images in [0, 1]: {largest:.4g}")
    settings = noise_settings(largest, size, channels)
    ratio = ratio_of_levels(channels * size**2)
    levels = number_of_levels(settings["sigma_max"], ratio)
    print(f"σ_max {settings['sigma_max']:g} (technique 1), σ_min {SIGMA_MIN}")
    print(f"at least {levels} noise levels, ratio {ratio:.4f} (technique 2)")
    print(f"snr {settings['snr']:g} (technique 4)")

    fields = {"images": count, "held_out": found.held_out, "holdout": holdout, **settings}
    fields["on_cpu"] = on_cpu
    print(f"training: {cost(common.own_images(str(root), size, channels, **fields))}")
    with atomic_write(path, "w") as file:
        fields = ",\n        ".join(f"{field}={value!r}" for field, value in fields.items())
        file.write(CONFIG.format(root=str(root), size=size, channels=channels, fields=fields))
    print(f"Wrote {path}. Train, draw samples, and compare them with the held-out images by:")
    print_commands(f"--config {path} --workdir {name}", "--encode_dataset --encode")
    if classes:
        of_classes = f"--config.model.num_classes={len(classes)}"
        print("or, class by class:")
        print_commands(f"--config {path} --workdir {name}_classes {of_classes}", "--stat --latent")
    if on_cpu:
        print(
            f"Without a GPU this is a first look: at most {CPU_SIDE} pixels unless --size is given,"
        )
        print("and few steps. Training continues with a larger --config.training.n_iters.")
    return path


def main() -> None:
    FLAGS = flags.FLAGS
    arguments = FLAGS(sys.argv)[1:]
    if len(arguments) != 1:
        raise UserError("Give one folder of images: python -m scripts.own_images DIR.")
    describe(arguments[0], FLAGS.size, FLAGS.config_file, FLAGS.holdout)


if __name__ == "__main__":
    flags.DEFINE_integer("size", None, "Side of the images that are modelled.")
    flags.DEFINE_string("config_file", None, "The configuration that is written.")
    flags.DEFINE_float("holdout", 0.1, "Share of the images to hold out, without a test folder.")
    cli.launch(main, words=True)
