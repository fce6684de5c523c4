"""What a folder of images asks of a score model, and a configuration for it.

python -m scripts.own_images DIR [--size 64] [--config_file configs/own.py]

`DIR` is laid out as the data set ``folder``: ``train/<class>/*`` or ``train/*``. The noise levels
follow Song and Ermon, "Improved Techniques for Training Score-Based Generative Models" (NeurIPS
2020): σ_max is the largest distance of two images (technique 1), the ratio γ of neighbouring levels
lets them overlap (technique 2), and Langevin's steps keep each level's variance (technique 4).
"""

import collections
import dataclasses
import math
import os
import pathlib
import sys

import ml_collections
import numpy as np
import torch
from absl import flags
from PIL import Image
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

import cli
import planning
from configs import common
from readers.folder import IMAGE_FORMATS, folder
from storage.files import atomic_write
from training.score import ScoreTraining
from utils import UserError

MOST = 5000  # images that are compared with each other
MOST_BYTES = 2**30  # of them in float32
SIGMA_MIN = 0.01
# Steps at each noise level that the paper takes, and its overlap of neighbouring levels.
LANGEVIN_STEPS, OVERLAP = 5, 0.5
USUAL_SCALES = 1000  # of the published configurations
MULTIPLE = 8  # of which a side must be, to be halved three times
CONFIG = '''"""NCSN++ on the images in {root}."""

from configs import common


def get_config():
    return common.own_images(
        {root!r}, {size}, {channels}, sigma_max={sigma_max}, num_scales={scales}, snr={snr}
    )
'''


@dataclasses.dataclass(frozen=True)
class Images:
    """What lies in a folder: how many training images, their sizes (W, H) with counts, channels."""

    count: int
    classes: int
    sizes: collections.Counter
    channels: int

    @property
    def side(self) -> int:
        """The side of the squares that all images hold, a multiple of MULTIPLE."""
        return min(map(min, self.sizes)) // MULTIPLE * MULTIPLE


def look(root: str | os.PathLike) -> Images:
    """The `Images` in ``root/train``, from the files' headers.

    Raises:
        UserError: as `readers.folder.folder`; or a file is no image.
    """
    source = folder(_data(root, MULTIPLE, 3), "train")
    place = pathlib.Path(root, "train")
    paths = [place / line.rsplit(" ", 1)[0] for line in source.files]
    sizes, modes = collections.Counter(), set()
    for path in paths:
        try:
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                sizes[image.size] += 1
                modes.add(image.mode)
        except Exception as error:  # PIL raises nearly anything on a damaged file
            raise UserError(f"{path} cannot be read as an image ({error}).") from None
    channels = 1 if modes <= {"1", "L", "LA"} else 3
    return Images(len(paths), source.classes, sizes, channels)


def _data(root, size, channels):
    config = common.base("folder").data
    config.root, config.image_size, config.num_channels = str(root), size, channels
    return config


def largest_distance(root: str | os.PathLike, size: int, channels: int) -> tuple[float, int]:
    """The largest Euclidean distance of two training images in [0, 1], of at most MOST of them.

    Returns:
        The distance, and how many images were compared.
    """
    source = folder(_data(root, size, channels), "train")
    most = min(MOST, MOST_BYTES // (4 * channels * size**2))
    chosen = np.random.default_rng(0).permutation(source.count)[:most]
    wanted = np.zeros(source.count, bool)
    wanted[chosen] = True
    kept, done = [], 0
    for block in source.blocks:
        kept.append(block.images[wanted[done : done + len(block.images)]])
        done += len(block.images)
    x = torch.from_numpy(np.concatenate(kept)).flatten(1).float()
    x /= 255
    # Without the mean the products are small, and so is what float32 rounds of them.
    x -= x.mean(0)
    largest = max(float(torch.cdist(part, x).max()) for part in x.split(256))
    return largest, len(x)


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


def snr(step: float) -> float:
    """The snr of the corrector `langevin` whose steps, 2(snr·σ)², are e·σ²."""
    return math.sqrt(step / 2)


def settings_for(largest: float, size: int, channels: int) -> dict[str, float]:
    """The arguments of `common.own_images` for images of this size and largest distance."""
    ratio = ratio_of_levels(channels * size**2)
    sigma_max = max(1.0, float(f"{largest:.3g}"))
    return {
        "sigma_max": sigma_max,
        "num_scales": max(USUAL_SCALES, number_of_levels(sigma_max, ratio)),
        "snr": float(f"{snr(step_size(ratio)):.2g}"),
    }


def describe(
    root: str | os.PathLike, size: int | None = None, target: str | os.PathLike | None = None
) -> pathlib.Path:
    """Print what is in `root` and what a score model of it takes; write a configuration.

    Args:
        size: side of the images that are modelled; None: what all images hold.
        target: the configuration's file; None: ``configs/own_{name of the folder}.py``.

    Returns:
        The configuration's path.

    Raises:
        UserError: the folder is not laid out as expected, or the size is none.
    """
    root = pathlib.Path(root).resolve()
    found = look(root)
    size = found.side if size is None else size
    if size < MULTIPLE or size % MULTIPLE:
        raise UserError(
            f"The images would be of {size}×{size} pixels; expected a multiple of {MULTIPLE}. The "
            f"smallest side in {root} is {min(map(min, found.sizes))}; give --size."
        )
    shapes = ", ".join(f"{w}×{h} ({n})" for (w, h), n in found.sizes.most_common(5))
    print(f"{root}: {found.count} training images in {found.classes} classes")
    print(f"sizes: {shapes}{', …' if len(found.sizes) > 5 else ''}; channels: {found.channels}")
    print(f"modelled: {found.channels}×{size}×{size}, cropped about the centre and resized")
    largest, compared = largest_distance(root, size, found.channels)
    print(f"largest distance of two of {compared} images in [0, 1]: {largest:.4g}")
    settings = settings_for(largest, size, found.channels)
    ratio = ratio_of_levels(found.channels * size**2)
    levels = number_of_levels(settings["sigma_max"], ratio)
    print(f"σ_max {settings['sigma_max']:g} (technique 1), σ_min {SIGMA_MIN}")
    print(f"at least {levels} noise levels, ratio {ratio:.4f} (technique 2)")
    print(f"snr {settings['snr']:g} (technique 4)")
    print(memory_of(common.own_images(str(root), size, found.channels, **settings)))
    path = pathlib.Path(target or f"configs/own_{_word(root.name)}.py")
    _write(path, root, size, found.channels, settings)
    print(f"Wrote {path}. Train with: python main.py --config {path} --workdir {_word(root.name)}")
    return path


def _word(name):
    """`name` with nothing but letters, digits and underscores."""
    return "".join(c if c.isalnum() else "_" for c in name)


def memory_of(config: ml_collections.ConfigDict) -> str:
    """A sentence on what a training step of `config` keeps."""
    _, fixed, each = planning.step_of(ScoreTraining(config, torch.device("cpu")), images=2)
    fixed, each = (planning.readable(size, "B", 1024) for size in (fixed, each))
    return (
        f"a training step keeps {fixed} and {each} for each image; batch "
        f"{config.training.batch_size}, or fewer at a time with --config.training.microbatch"
    )


def _write(path, root, size, channels, settings):
    if path.exists():
        raise UserError(f"{path} exists; name another file with --config_file.")
    text = CONFIG.format(
        root=str(root),
        size=size,
        channels=channels,
        sigma_max=settings["sigma_max"],
        scales=settings["num_scales"],
        snr=settings["snr"],
    )
    with atomic_write(path, "w") as file:
        file.write(text)


def main() -> None:
    arguments = flags.FLAGS(sys.argv)[1:]
    if len(arguments) != 1:
        raise UserError("Give one folder of images: python -m scripts.own_images DIR.")
    describe(arguments[0], flags.FLAGS.size, flags.FLAGS.config_file)


if __name__ == "__main__":
    flags.DEFINE_integer("size", None, "Side of the images that are modelled.")
    flags.DEFINE_string("config_file", None, "The configuration that is written.")
    cli.launch(main)
