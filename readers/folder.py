"""The reader of a folder of images, ``train/<class>/*`` and ``test/<class>/*``.

Whatever does not fit is a UserError that names the file: no image is passed over in silence.
"""

import concurrent.futures
import contextlib
import functools
import os
import pathlib
import threading

import ml_collections
import numpy as np
from PIL import Image, ImageOps

from readers import common
from readers.common import Source, block, file_stamps
from utils import UserError, lookup, require_positive

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no EPS: it runs Ghostscript

MODES = {1: "L", 3: "RGB"}  # PIL's, by the number of channels

# A picture costs 4 bytes a pixel, several times over while it is converted, and a flat one fits
# into a small file. Large pictures are decoded one after the other, the others by a few threads.
MOST_PIXELS = 5 * 10**7
LARGE_PIXELS = 4 * 10**6
DECODERS = 8
_one_large = threading.Lock()


def folder(data: ml_collections.ConfigDict, split: str) -> Source:
    """Images laid out as ``root/train/<class>/*`` and ``root/test/<class>/*``.

    The classes are the sorted names of the directories in ``train``. Each image becomes grey
    (num_channels 1) or RGB (3), is cropped to its central square and resized to image_size.
    Names that begin with a dot are passed over.

    Raises:
        UserError: there are no classes or no images, a class of ``test`` is not in ``train``,
            something that is no file lies among the images, a link leads out of the folder, or
            image_size or num_channels is no size or number of channels.
    """
    size = require_positive(data.image_size, "data.image_size")
    mode = lookup(MODES, data.num_channels, "data.num_channels")
    root = os.path.realpath(data.root)
    names = _class_names(root, "train")
    paths, labels = [], []
    for name in names if split == "train" else _class_names(root, split):
        if name not in names:
            raise UserError(
                f"{root}/{split} has the class {name!r}, which {root}/train lacks; expected the "
                f"classes {', '.join(names)} or some of them."
            )
        found = _visible(root, os.path.join(root, split, name))
        for path in found:
            if not os.path.isfile(path):
                raise UserError(f"{path} is no file; expected nothing but images beside it.")
        if not found and split == "train":
            raise UserError(f"{root}/{split}/{name} holds no images; add some or remove it.")
        paths += found
        labels += [names.index(name)] * len(found)
    if not paths:
        raise UserError(f"{root}/{split} holds no images; expected {split}/<class>/<image>.")
    shape = (data.num_channels, size, size)
    blocks = _folder_blocks(paths, np.array(labels), shape, mode, len(names))
    return Source(shape, len(names), blocks, names + file_stamps(paths), len(paths))


def _class_names(root, split):
    """The sorted names of the directories in ``root/split``."""
    directory = os.path.join(root, split)
    if not os.path.isdir(directory):
        raise UserError(
            f"{directory} is no directory; expected images laid out as train/<class>/<image> and "
            "test/<class>/<image> in the folder that data.root names."
        )
    paths = _visible(root, directory)
    for path in paths:
        if not os.path.isdir(path):
            raise UserError(
                f"{path} lies beside the directories of the classes; expected "
                f"{split}/<class>/<image>. Move it into one of them or away."
            )
    if not paths:
        raise UserError(f"{directory} holds no images; expected {split}/<class>/<image>.")
    return [os.path.basename(path) for path in paths]


def _visible(root, directory):
    """The sorted paths in `directory` that do not begin with a dot; none may lead out of `root`.

    Raises:
        UserError: one leads out, or has control characters in its name, which could pass for
            several names or for a terminal's commands.
    """
    with os.scandir(directory) as entries:
        entries = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in entries:
        if any(character < " " or character == "\x7f" for character in entry.name):
            raise UserError(
                f"{directory} holds {entry.name!r}, a name with control characters; rename it."
            )
    links = [entry.path for entry in entries if entry.is_symlink()]
    for path in [directory, *links]:
        if not os.path.realpath(path).startswith(os.path.join(root, "")):
            raise UserError(
                f"{path} links to {os.path.realpath(path)}, outside {root}; expected the "
                "images themselves or links within the folder."
            )
    return sorted(entry.path for entry in entries)


def _folder_blocks(paths, labels, shape, mode, classes):
    # PIL decodes without holding the GIL.
    with concurrent.futures.ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(paths), common.BLOCK):
            part = slice(start, start + common.BLOCK)
            decode = functools.partial(decode_image, mode=mode, size=shape[-1])
            images = np.stack(list(pool.map(decode, paths[part]))).transpose(0, 3, 1, 2)
            yield block(os.path.dirname(paths[start]), images, labels[part], shape, classes)


def decode_image(path: pathlib.Path, mode: str, size: tuple[int, int]) -> np.ndarray:
    """One image file, cropped to its central square and resized: uint8 (size, size, C).

    Where `size` is None it stays as it is: uint8 (H, W, C).

    Raises:
        UserError: the file is no readable image, too large, or of more than 8 bits a channel.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MOST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels, too many to be safe")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}, more than 8 bits a channel")
            with _one_large if pixels > LARGE_PIXELS else contextlib.nullcontext():
                converted = image if image.mode == mode else image.convert(mode)
                if size is not None:
                    converted = ImageOps.fit(converted, (size, size), Image.Resampling.BICUBIC)
                array = np.array(converted)
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise UserError(
            f"{path} cannot be read as an image ({error}); expected a whole file of 8 bits a "
            f"channel, {', '.join(IMAGE_FORMATS)}. Convert it or move it away."
        ) from None
    return array.reshape(*array.shape[:2], -1)
