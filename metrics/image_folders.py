"""Folders of images: `--folders A B` compares two, and `--png` writes samples into one.

As in torch-fidelity, a folder's images are those in the folder itself, in the order of their names,
at their own size, in RGB (or in grey, if the configuration's data are). Formats and decoding are
those of the data set `folder`, see `readers.folder`.
"""

import functools
import os
import pathlib

import ml_collections
import numpy as np
from tqdm import tqdm

from metrics import encoding, extractors
from metrics.feature_sets import FeatureSet
from metrics.sample_sets import numbered_rounds
from storage.files import load_npz
from utils import UserError, is_first, lookup


def image_paths(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The images in `folder`, by name; other files and folders in it are skipped.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    from PIL import Image

    from readers.folder import IMAGE_FORMATS, visible

    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; --folders takes two folders of images.")
    suffixes = {s for s, kind in Image.registered_extensions().items() if kind in IMAGE_FORMATS}
    names = [name for name in visible(folder) if os.path.splitext(name)[1].lower() in suffixes]
    if not names:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_FORMATS)}).")
    return [folder / name for name in names]


def image_batches(
    folder: str | os.PathLike, batch_size: int, channels: int
) -> list[extractors.Batch]:
    """Batches of a folder's images, uint8 (n, H, W, channels), which ``read()`` decodes.

    Raises:
        UserError: a folder holds no images, or `channels` is not 1 or 3; and in ``read()``: a file
            is no image, or the images of a batch differ in size.
    """
    from readers.folder import MODES

    mode = lookup(MODES, channels, "config.data.num_channels")
    paths = image_paths(folder)
    parts = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    return [extractors.Batch(len(part), functools.partial(_read, part, mode)) for part in parts]


def _read(paths, mode):
    from readers.folder import read_images

    images = read_images(paths, mode)
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise UserError(
                f"{path} has the shape {image.shape}, {paths[0]} {images[0].shape}; the images of "
                "a folder must be of one size."
            )
    return np.stack(images)


def open_folders(
    config: ml_collections.ConfigDict, samples: str | os.PathLike, real: str | os.PathLike
) -> list[FeatureSet]:
    """The `FeatureSet` of the real images and that of the samples; nothing is written.

    The ranks of torchrun share the encoding, and rank 0 alone returns the sets.

    Raises:
        UserError: see `image_batches` and `encoding.open_extractor`.
    """
    size, channels = config.eval.batch_size, config.data.num_channels
    folders = {folder: image_batches(folder, size, channels) for folder in (real, samples)}
    extractor = encoding.open_extractor(config)
    sets = []
    for folder in (real, samples):
        parts = list(extractors.encode_batches(extractor, folders[folder], config.eval.microbatch))
        if is_first():
            pool, logits = map(np.concatenate, zip(*parts, strict=True))
            origin, source = {"folder": str(folder)}, pathlib.Path(folder)
            sets.append(FeatureSet(pool, logits, (extractor.name,), origin, source))
    return sets


def write_samples(folder: pathlib.Path) -> pathlib.Path:
    """Write the images of ``folder/{part}/samples_{round}.npz`` as PNG files into one folder.

    That is ``{folder}_png``, which is returned; the order of the names is that of the samples.

    Raises:
        UserError: the samples are not images.
    """
    from PIL import Image

    target = folder.with_name(f"{folder.name}_png")
    target.mkdir(parents=True, exist_ok=True)
    for path in target.glob("[0-9]*_[0-9]*_[0-9]*.png"):  # of other samples
        path.unlink()
    parts = sorted((int(path.name), path) for path in folder.glob("[0-9]*"))
    rounds = [(part, *found) for part, path in parts for found in numbered_rounds(path)]
    for part, number, path in tqdm(rounds, desc="PNG files", unit="file", disable=not is_first()):
        images = load_npz(path, "samples")["samples"]
        if images.ndim != 4:
            raise UserError(f"{path} holds points; --png takes samples that are images.")
        for index, image in enumerate(images):
            image = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(image).save(target / f"{part:04}_{number:05}_{index:05}.png")
    return target
