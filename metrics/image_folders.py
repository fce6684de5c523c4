"""Folders of images, as any program leaves or takes them: read as sets, written from samples.

The images count as torch-fidelity counts them: PNG and JPEG files in the folder itself, in the
order of their names, at their own size, in RGB (or in grey, where a configuration's data are).
"""

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np
from tqdm import tqdm

from metrics import encoding, extractors
from metrics.feature_sets import FeatureSet
from metrics.sample_sets import numbered_rounds
from storage.files import load_npz
from utils import UserError, is_first, lookup

SUFFIXES = (".png", ".jpg", ".jpeg")
PNG_NAME = "_".join("[0-9]" * digits for digits in (4, 5, 5))  # of a sample: part, round, index


def image_paths(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The images in `folder`, by name; other files and folders in it are passed over.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; --folders takes two folders of images.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(
            f"{folder} holds no images, {', '.join(SUFFIXES)}; give a folder that does."
        )
    return paths


def read_images(
    paths: Sequence[pathlib.Path], batch_size: int, channels: int
) -> Iterator[np.ndarray]:
    """Yield the images in batches, uint8 (n, H, W, channels).

    Raises:
        UserError: a file is no image, or of another size than the first; or there is no picture of
            so many channels.
    """
    from readers.folder import DECODERS, MODES, decode_image

    mode = lookup(MODES, channels, "config.data.num_channels")
    decode = functools.partial(decode_image, mode=mode, size=None)
    shape = None
    with concurrent.futures.ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            images = list(pool.map(decode, part))
            shape = shape or images[0].shape
            for path, image in zip(part, images, strict=True):
                if image.shape != shape:
                    raise UserError(
                        f"{path} is of {image.shape[1]}×{image.shape[0]} pixels, {paths[0]} of "
                        f"{shape[1]}×{shape[0]}; the images of a folder must be of one size. "
                        "Resize them first."
                    )
            yield np.stack(images)


def open_folders(
    config: ml_collections.ConfigDict, samples: str | os.PathLike, real: str | os.PathLike
) -> tuple[FeatureSet, FeatureSet]:
    """The `FeatureSet` of the real images and that of the samples, encoded in memory.

    Processes that torchrun started share the work; the first has all of it in the end.

    Raises:
        UserError: a folder holds no images, or not such as `read_images` expects; or no features
            are to be had.
    """
    paths = {folder: image_paths(folder) for folder in (real, samples)}
    extractor = encoding.open_extractor(config)
    return tuple(_encode(config, extractor, folder, paths[folder]) for folder in (real, samples))


def _encode(config, extractor, folder, paths):
    batches = read_images(paths, config.eval.batch_size, config.data.num_channels)
    pool, logits = extractors.extract_together(extractor, batches, len(paths))
    origin = {"folder": str(folder)}
    return FeatureSet(pool, logits, None, (extractor.name,), origin, pathlib.Path(folder))


def png_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the samples in ``folder/{part}`` lie as PNG files."""
    return folder.with_name(f"{folder.name}_png")


def write_samples(folder: pathlib.Path) -> pathlib.Path:
    """Write the samples in ``folder/{part}/samples_{round}.npz`` as PNG files into one folder.

    That is `png_folder`, the names in the order of the samples. Files that are newer than
    their samples stand; those of samples that are no longer there go. Returns the folder.

    Raises:
        UserError: a file of samples holds no uint8 images (n, H, W, 1 or 3).
    """
    target = png_folder(folder)
    target.mkdir(parents=True, exist_ok=True)
    places = folder.iterdir() if folder.exists() else ()  # no sample may have been asked for
    parts = sorted((int(path.name), path) for path in places if path.name.isdecimal())
    rounds = [(part, *found) for part, path in parts for found in numbered_rounds(path)]
    written = set()
    for part, number, path in tqdm(rounds, desc="PNG files", unit="file", disable=not is_first()):
        images = load_npz(path, "samples")["samples"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{path} holds {images.dtype} of shape {images.shape}; PNG files are written of "
                "uint8 images (n, height, width, 1 or 3)."
            )
        made = path.stat().st_mtime_ns
        for index, image in enumerate(images):
            name = target / f"{part:04}_{number:05}_{index:05}.png"
            written.add(name)
            if not name.exists() or name.stat().st_mtime_ns < made:
                _write_png(name, image)
    for name in {*target.glob(f"{PNG_NAME}.png")} - written:
        name.unlink()
    return target


def _write_png(path, image):
    """Write an image (H, W, 1 or 3), whole or not at all.

    Not by `atomic_write`, which waits for the disk and looks for what others left: of tens of
    thousands of small files in one folder that would take hours.
    """
    from PIL import Image

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG")
    os.replace(temporary, path)
