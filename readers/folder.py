"""Folders of image files: the data set ``folder``, and the decoding of any image file.

Images are rotated by their EXIF orientation, and transparent ones are composited over white. Hidden
and system files are skipped. Every other file that is not a readable image raises a UserError that
names it.
"""

import concurrent.futures
import functools
import hashlib
import itertools
import os
from collections.abc import Sequence

import ml_collections
import numpy as np
from PIL import Image, ImageOps

import domains
from readers import common
from readers.common import MissingSplit, Source, block, file_stamps
from utils import UserError, log, lookup

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no EPS: it runs Ghostscript
SYSTEM_FILES = ("thumbs.db", "desktop.ini")

MODES = {1: "L", 3: "RGB"}  # PIL's, by the number of channels

DECODERS = 8  # threads
RULE = 2  # version of the decoding and the order of classes; a new version rebuilds caches


def folder(data: ml_collections.ConfigDict, split: str) -> Source:
    """Images laid out as ``root/train/<class>/*`` and ``root/test/<class>/*``, or without classes.

    Without a directory ``train`` the images are in ``root`` itself. The subdirectories there are
    the classes, ordered by number if all names are numbers, else by name. Images directly there
    have no classes. Without ``root/test`` the share ``data.holdout`` of the images is the test
    split, see `is_held_out`. Each image is converted to grey (num_channels 1) or RGB (3), cropped
    about its centre to the shape of image_size rows of image_width (none: square), and resized.

    Raises:
        MissingSplit: there is no ``root/test``, and nothing is held out.
        UserError: there are no images, a class of ``test`` is not in ``train``, an entry among the
            images is not a file, or there are both a test directory and a held-out share.
    """
    domain = domains.images_of(data, "The data set folder")
    mode = lookup(MODES, data.num_channels, "data.num_channels")
    root, share = os.path.realpath(data.root), data.get("holdout", 0.0)
    place, test = training_images(root), os.path.join(root, "test")
    images = _by_class(place)
    names = list(images)
    if empty := [name for name in names if not images[name]]:
        raise UserError(f"{place}/{empty[0]} holds no images; add some or remove it.")
    if os.path.isdir(test):
        if share:
            raise UserError(
                f"{root} has a directory test, so nothing need be held out of train; set "
                "--config.data.holdout=0."
            )
        if split == "test":
            place, images = test, _by_class(test)
    elif split == "test" and not share:
        raise MissingSplit(
            f"{test} is no directory; expected the test images, laid out as those of train are, or "
            "a share that is held out, such as --config.data.holdout=0.1."
        )
    paths, labels = [], []
    for name, found in images.items():
        if name not in names:
            raise UserError(
                f"{place} has the class {name!r}, which {root}/train lacks; expected some "
                f"of {', '.join(names)} (. stands for images without classes)."
            )
        if share:
            held_out = split == "test"
            found = [p for p in found if is_held_out(os.path.relpath(p, place), share) == held_out]
        paths += found
        labels += [names.index(name)] * len(found)
    if not paths:
        raise (MissingSplit if share and split == "test" else UserError)(
            f"{place} has no images for the split {split} (held-out share: {share}); add some, or "
            "give another --config.data.holdout."
        )
    stamps = file_stamps(paths)
    place = os.path.join(place, "")
    return Source(
        domain.shape,
        len(names),
        _folder_blocks(paths, np.array(labels), domain.shape, mode, len(names)),
        [f"rule {RULE}", *names, *stamps],
        len(paths),
        class_names=() if names == ["."] else tuple(names),
        files=[stamp.removeprefix(place).rsplit(" ", 1)[0] for stamp in stamps],
        origin=f"read from {place}",
    )


def training_images(root: str | os.PathLike) -> str:
    """The directory of the training images: ``root/train`` if there are splits, else `root`."""
    train = os.path.join(root, "train")
    is_split = os.path.isdir(train) or os.path.isdir(os.path.join(root, "test"))
    return train if is_split else str(root)


def is_held_out(name: str, share: float) -> bool:
    """Whether an image is of the held-out `share`, by a hash of its path `name` in the folder.

    Adding other images or moving the folder does not change the result.
    """
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _by_class(directory):
    """{class: its images' paths} in the order of the labels; class ``"."``: without classes."""
    if not os.path.isdir(directory):
        raise UserError(
            f"{directory} is no directory; expected images laid out as train/<class>/<image>, "
            "<class>/<image> or without classes, in the folder that data.root names."
        )
    paths = {name: os.path.join(directory, name) for name in visible(directory)}
    files = [path for path in paths.values() if not os.path.isdir(path)]
    if not paths or 0 < len(files) < len(paths):
        raise UserError(
            f"{directory} holds {files[0] if files else 'nothing'} beside the directories of the "
            "classes; expected images laid out as train/<class>/<image> or <class>/<image>."
        )
    if files:
        found = {".": files}
    else:
        names = sorted(paths, key=int) if all(map(str.isdecimal, paths)) else paths
        found = {n: [os.path.join(paths[n], each) for each in visible(paths[n])] for n in names}
    for path in itertools.chain(*found.values()):
        if not os.path.isfile(path):
            raise UserError(f"{path} is no file; expected only images in its directory.")
    return found


def visible(directory: str | os.PathLike) -> list[str]:
    """The sorted names in `directory`, without hidden files and those of file managers."""
    names = sorted(os.listdir(directory))
    return [n for n in names if not n.startswith(".") and n.lower() not in SYSTEM_FILES]


def _folder_blocks(paths, labels, shape, mode, classes):
    for start in range(0, len(paths), common.BLOCK):
        part = slice(start, start + common.BLOCK)
        images = domains.channels_first(np.stack(read_images(paths[part], mode, shape[1:])))
        yield block(os.path.dirname(paths[start]), images, labels[part], shape, classes)


def read_images(
    paths: Sequence[str | os.PathLike], mode: str, size: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """The images at `paths`, decoded as `decode_image` by a few threads."""
    # PIL decodes without holding the GIL.
    with concurrent.futures.ThreadPoolExecutor(DECODERS) as pool:
        return list(pool.map(functools.partial(decode_image, mode=mode, size=size), paths))


def decode_image(
    path: str | os.PathLike, mode: str, size: tuple[int, int] | None = None
) -> np.ndarray:
    """One image file, rotated by its EXIF data, centre-cropped and resized to `size` (H, W).

    Returns:
        The image, uint8 (H, W, C), at its own size if `size` is None.

    Raises:
        UserError: the file is no readable image, too large for Pillow, or of more than 8 bits a
            channel.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}, more than 8 bits a channel")
            ImageOps.exif_transpose(image, in_place=True)
            converted = _over_white(image).convert(mode)
            if size is not None:
                converted = ImageOps.fit(converted, size[::-1], Image.Resampling.BICUBIC)
            array = np.array(converted)
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise UserError(
            f"{path} cannot be read as an image ({error}); expected a whole file of 8 bits a "
            f"channel, {', '.join(IMAGE_FORMATS)}. Convert it or move it away."
        ) from None
    return array.reshape(*array.shape[:2], -1)


def _over_white(image):
    """A PIL image, composited over white if it is transparent."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getextrema()[3][0] < 255:
        _say_transparent()
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


@functools.cache
def _say_transparent():
    """Log once what happens to transparent images."""
    log.warning("Some images are transparent; they are composited over white.")
