"""Folders of images, as any program leaves or takes them: read as sets, written from samples.

The images count as torch-fidelity counts them: those in the folder itself, in the order of their
names, at their own size, in RGB (or in grey, where a configuration's data are). They are of the
formats that training takes, and read as `readers.folder` reads them.
"""

import functools
import os
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np
from tqdm import tqdm

from metrics import encoding, extractors
from metrics.feature_sets import FeatureSet
from metrics.sample_sets import numbered_rounds
from storage.files import load_npz
from utils import UserError, is_first, lookup

PNG_NAME = "_".join("[0-9]" * digits for digits in (4, 5, 5))  # of a sample: part, round, index


def image_paths(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The images in `folder`, by name; other files and folders in it are passed over.

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
        raise UserError(
            f"{folder} holds no images ({', '.join(IMAGE_FORMATS)}); give a folder that does."
        )
    return [folder / name for name in names]


def image_batches(
    paths: Sequence[pathlib.Path], batch_size: int, channels: int
) -> list[extractors.Batch]:
    """Batches of the images, uint8 (n, H, W, channels), which are read when they are needed.

    Raises:
        UserError: there is no picture of so many channels; and when a batch is read, a file is no
            image, or of another size than the first.
    """
    from readers.folder import MODES, ImageReader

    reader = ImageReader(lookup(MODES, channels, "config.data.num_channels"))
    parts = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    return [
        extractors.Batch(len(part), functools.partial(_read, reader, paths[0], part))
        for part in parts
    ]


def _read(reader, first, paths):
    """The images at `paths`, uint8 (n, H, W, C), if they are of the size of the image `first`."""
    images = reader.read([first, *paths])
    for path, image in zip(paths, images[1:], strict=True):
        if image.shape != images[0].shape:
            raise UserError(
                f"{path} is of {image.shape[1]}×{image.shape[0]} pixels, {first} of "
                f"{images[0].shape[1]}×{images[0].shape[0]}; the images of a folder must be of "
                "one size. Resize them first."
            )
    return np.stack(images[1:])


def open_folders(
    config: ml_collections.ConfigDict, samples: str | os.PathLike, real: str | os.PathLike
) -> tuple[FeatureSet, FeatureSet]:
    """The `FeatureSet` of the real images and that of the samples, encoded in memory.

    Processes that torchrun started share the work; the first has all of it in the end.

    Raises:
        UserError: a folder holds no images, or not such as `image_batches` expects; or no features
            are to be had.
    """
    paths = {folder: image_paths(folder) for folder in (real, samples)}
    extractor = encoding.open_extractor(config)
    return tuple(_encode(config, extractor, folder, paths[folder]) for folder in (real, samples))


def _encode(config, extractor, folder, paths):
    batches = image_batches(paths, config.eval.batch_size, config.data.num_channels)
    pool, logits = extractors.extract(extractor, batches, config.eval.microbatch, together=True)
    origin = {"folder": str(folder)}
    return FeatureSet(pool, logits, None, (extractor.name,), origin, pathlib.Path(folder))


def write_samples(folder: pathlib.Path) -> pathlib.Path:
    """Write the samples in ``folder/{part}/samples_{round}.npz`` as PNG files into one folder.

    That is ``{folder}_png``, which is returned, the names in the order of the samples.

    Raises:
        UserError: a file of samples holds no uint8 images (n, H, W, 1 or 3).
    """
    from PIL import Image

    target = folder.with_name(f"{folder.name}_png")
    target.mkdir(parents=True, exist_ok=True)
    for name in target.glob(f"{PNG_NAME}.png"):
        name.unlink()
    places = folder.iterdir() if folder.exists() else ()  # no sample may have been asked for
    parts = sorted((int(path.name), path) for path in places if path.name.isdecimal())
    rounds = [(part, *found) for part, path in parts for found in numbered_rounds(path)]
    for part, number, path in tqdm(rounds, desc="PNG files", unit="file", disable=not is_first()):
        images = load_npz(path, "samples")["samples"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{path} holds {images.dtype} of shape {images.shape}; PNG files are written of "
                "uint8 images (n, height, width, 1 or 3)."
            )
        for index, image in enumerate(images):
            image = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(image).save(target / f"{part:04}_{number:05}_{index:05}.png")
    return target
