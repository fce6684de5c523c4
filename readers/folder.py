"""The reader of a folder of images, ``train/<class>/*`` and ``test/<class>/*``, or without classes.

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

import domains
from readers import common
from readers.common import MissingSplit, Source, block, file_stamps
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
    """Images laid out as ``root/train/<class>/*`` and ``root/test/<class>/*``, or without classes.

    The classes are the sorted names of the directories in ``train``; images that lie in ``train``
    itself are of one class. Each image becomes grey (num_channels 1) or RGB (3), is cropped about
    its centre to the form of image_size rows of image_width (none: a square) and resized to that.
    Names that begin with a dot are passed over.

    Raises:
        MissingSplit: there is no ``root/test``.
        UserError: there are no images, a class of ``test`` is not in ``train``, something that is
            no file lies among the images, a link leads out of the folder, or a size or
            num_channels is none.
    """
    domain = domains.images_of(data, "The data set folder")
    require_positive(domain.height, "data.image_size")
    require_positive(domain.width, "data.image_width")
    mode = lookup(MODES, data.num_channels, "data.num_channels")
    root = os.path.realpath(data.root)
    names = _class_names(root, "train")
    paths, labels = [], []
    if split == "test" and not os.path.isdir(os.path.join(root, split)):
        raise MissingSplit(
            f"{root}/{split} is no directory; expected the test images, laid out as "
            "train/<class>/<image> are, in the folder that data.root names."
        )
    for name in names if split == "train" else _class_names(root, split):
        if name not in names:
            raise UserError(
                f"{root}/{split} has the class {name!r}, which {root}/train lacks; expected "
                + (
                    "images without classes, as there."
                    if names == ["."]
                    else f"the classes {', '.join(names)} or some of them."
                )
            )
        found = _visible(root, os.path.normpath(os.path.join(root, split, name)))
        for path in found:
            if not os.path.isfile(path):
                raise UserError(f"{path} is no file; expected nothing but images beside it.")
        if not found and split == "train":
            raise UserError(f"{root}/{split}/{name} holds no images; add some or remove it.")
        paths += found
        labels += [names.index(name)] * len(found)
    if not paths:
        raise UserError(f"{root}/{split} holds no images; expected {split}/<class>/<image>.")
    blocks = _folder_blocks(paths, np.array(labels), domain.shape, mode, len(names))
    return Source(domain.shape, len(names), blocks, names + file_stamps(paths), len(paths))


def _class_names(root, split):
    """The sorted names of the directories in ``root/split``; of images without classes ``"."``."""
    directory = os.path.join(root, split)
    if not os.path.isdir(directory):
        raise UserError(
            f"{directory} is no directory; expected images laid out as train/<class>/<image>, or "
            "train/<image> without classes, in the folder that data.root names."
        )
    paths = _visible(root, directory)
    if paths and not any(map(os.path.isdir, paths)):
        return ["."]
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
            decode = functools.partial(decode_image, mode=mode, size=shape[1:])
            images = np.stack(list(pool.map(decode, paths[part]))).transpose(0, 3, 1, 2)
            yield block(os.path.dirname(paths[start]), images, labels[part], shape, classes)


def decode_image(path: pathlib.Path, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    """One image file as uint8 (H, W, C), cropped about its centre and resized to `size` (H, W).

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
                    converted = ImageOps.fit(converted, size[::-1], Image.Resampling.BICUBIC)
                array = np.array(converted)
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise UserError(
            f"{path} cannot be read as an image ({error}); expected a whole file of 8 bits a "
            f"channel, {', '.join(IMAGE_FORMATS)}. Convert it or move it away."
        ) from None
    return array.reshape(*array.shape[:2], -1)
