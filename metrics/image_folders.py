"""Folders of images, as any program leaves them, as sets that the metrics compare.

The images count as torch-fidelity counts them: PNG and JPEG files in the folder itself, in the
order of their names, at their own size, in RGB (or in grey, where a configuration's data are).
"""

import concurrent.futures
import functools
import pathlib

import numpy as np

from metrics import encoding, extractors
from metrics.feature_sets import FeatureSet
from utils import UserError, lookup

SUFFIXES = (".png", ".jpg", ".jpeg")


def image_paths(folder):
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


def read_images(paths, batch_size, channels):
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


def open_folders(config, samples, real):
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
