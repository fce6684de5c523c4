"""Inspect a folder of images, and write a configuration of a score model for it.

python -m scripts.own_images DIR [--size 64] [--holdout 0.1] [--config_file configs/own.py]

`DIR` is laid out as the data set ``folder``: images, or a directory of images for each class, there
or in ``train/``. Without a directory ``test`` a share is held out. Steps, batch size and counts
depend on the number of images, the network on the device. σ_max is the largest distance of two
images (Song and Ermon, "Improved Techniques for Training Score-Based Generative Models", NeurIPS
2020, technique 1).
"""

import collections
import os
import pathlib
import sys

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

import cli
import datasets
from configs import common
from readers.folder import IMAGE_FORMATS, folder, training_images
from storage.files import atomic_write
from training.cost import step_of
from training.score import ScoreTraining
from utils import UserError, get_device

MOST = 5000  # images that are compared with each other
MULTIPLE = 8  # divides each side, which is halved three times
CPU_SIDE = 32  # largest side of images for a training of minutes on a CPU
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


def look(root: pathlib.Path, holdout: float) -> tuple[collections.Counter, int]:
    """The sizes (W, H) of the training images in `root`, and 1 if all are grey, else 3.

    Raises:
        UserError: as `readers.folder.folder`; or a file is no image.
    """
    place, sizes, modes = pathlib.Path(training_images(root)), collections.Counter(), set()
    for line in folder(_data(root, MULTIPLE, 3, holdout), "train").files:
        path = place / line.rsplit(" ", 1)[0]
        try:
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                sizes[image.size] += 1
                modes.add(image.mode)
        except Exception as error:  # PIL raises nearly anything on a damaged file
            raise UserError(f"{path} cannot be read as an image ({error}).") from None
    return sizes, 1 if modes <= {"1", "L", "LA"} else 3


def _data(root, size, channels, holdout):
    config = common.base("folder").data
    config.root, config.image_size, config.num_channels = str(root), size, channels
    config.holdout = holdout
    return config


def largest_distance(images: np.ndarray) -> float:
    """The largest Euclidean distance of two images in [0, 1], of at most MOST of them.

    Args:
        images: uint8 (N, C, H, W).
    """
    chosen = np.random.default_rng(0).permutation(len(images))[:MOST]
    x = torch.from_numpy(images[np.sort(chosen)]).flatten(1).float() / 255
    # Subtracting the mean keeps the products and their float32 rounding errors small.
    x -= x.mean(0)
    return max(float(torch.cdist(part, x).max()) for part in x.split(256))


def cost(config: ConfigDict) -> str:
    """Steps, FLOPs and memory of a training, as text."""
    training, device = config.training, get_device(config.device)
    flops, fixed, each = step_of(ScoreTraining(config, device), images=2)
    flops *= training.batch_size * training.n_iters
    memory = fixed + each * training.batch_size
    return (
        f"{training.n_iters:,} steps of {training.batch_size} images on {device}, "
        f"{tqdm.format_sizeof(flops, 'FLOP')} in all; memory "
        f"{tqdm.format_sizeof(memory, 'iB', 1024)}"
    )


def print_commands(run: str, encode: str) -> None:
    """Print the commands that train, sample and evaluate; `run` and `encode` are their flags."""
    print(f"  python main.py {run}")
    print(f"  python run_lib_sampling.py {run}")
    print(f"  python run_lib_evaluation.py {run} {encode} --kid")


def describe(
    root: str | os.PathLike,
    size: int | None = None,
    target: str | os.PathLike | None = None,
    holdout: float = 0.1,
) -> pathlib.Path:
    """Print the content of `root`, and write a configuration of a score model for it.

    Args:
        size: side of the modelled images; None: the smallest side in `root`, on a CPU at most
            CPU_SIDE.
        target: the configuration's file; None: ``configs/own_{name of the folder}.py``.
        holdout: the share of the images that is held out where there is no directory ``test``.

    Returns:
        The configuration's path.

    Raises:
        UserError: the folder is not laid out as expected, or the size is invalid.
    """
    root = pathlib.Path(root).resolve()
    name = "".join(c if c.isalnum() else "_" for c in root.name)
    path = pathlib.Path(target or f"configs/own_{name}.py")
    if path.exists():
        raise UserError(f"{path} exists; name another file with --config_file.")
    if not 0 <= holdout < 1:
        raise UserError(f"--holdout is {holdout}; expected a share from 0 to below 1.")
    holdout = 0.0 if (root / "test").is_dir() else holdout
    sizes, channels = look(root, holdout)
    smallest, on_cpu = min(map(min, sizes)), get_device("auto").type == "cpu"
    if size is None:
        size = min(smallest, CPU_SIDE if on_cpu else smallest) // MULTIPLE * MULTIPLE
    if size < MULTIPLE or size % MULTIPLE:
        raise UserError(
            f"The images would be of {size}×{size} pixels; expected a multiple of {MULTIPLE}. The "
            f"smallest side in {root} is {smallest}; give --size."
        )
    # Both splits are decoded, so that a damaged file is found now and not after training.
    train, test = datasets.load_both(_data(root, size, channels, holdout))
    held_out = 0 if test is None else len(test)
    classes = len(train.class_names)
    kinds = f" in {classes} classes" if classes else ""
    print(f"{root}: {len(train)} training images{kinds}, and {held_out} that are held out")
    fields = {
        "images": len(train),
        "held_out": held_out,
        "holdout": holdout,
        "sigma_max": max(1.0, float(f"{largest_distance(train.images):.3g}")),
        "on_cpu": on_cpu,
    }
    print(f"modelled: {channels}×{size}×{size}, cropped about the centre and resized")
    print(f"σ_max: {fields['sigma_max']:g}, the largest distance of two images in [0, 1]")
    config = common.own_images(str(root), size, channels, **fields)
    print(f"training: {cost(config)}")
    with atomic_write(path, "w") as file:
        fields = ",\n        ".join(f"{field}={value!r}" for field, value in fields.items())
        file.write(CONFIG.format(root=str(root), size=size, channels=channels, fields=fields))
    print(f"Wrote {path}. Train, draw samples, and compare them with the held-out images by:")
    print_commands(f"--config {path} --workdir {name}", "--encode_dataset --encode")
    if classes:
        of_classes = f"--config.model.num_classes={classes}"
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
