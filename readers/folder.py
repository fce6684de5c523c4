"""Folders of image files: the data set ``folder``, and the decoding of any image file.

A picture is read as a viewer shows it: turned as its EXIF orientation says, and composited over
white where it is transparent. Hidden and system files are passed over. Every other file that is no
readable image is a UserError that names it.
"""

import concurrent.futures
import functools
import hashlib
import os
from collections.abc import Sequence

import ml_collections
import numpy as np
from PIL import Image, ImageOps

import domains
from readers import common
from readers.common import MissingSplit, Source, block, file_stamps
from utils import UserError, log, lookup, require_positive

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no EPS: it runs Ghostscript
SYSTEM_FILES = ("thumbs.db", "desktop.ini")

MODES = {1: "L", 3: "RGB"}  # PIL's, by the number of channels

MOST_PIXELS = 5 * 10**7  # of a picture; a flat one of any size fits into a small file
DECODERS = 8  # threads
RULE = 2  # of decoding and of the order of classes: a change of one changes it, and the caches


def folder(data: ml_collections.ConfigDict, split: str) -> Source:
    """Images laid out as ``root/train/<class>/*`` and ``root/test/<class>/*``, or without classes.

    Without a directory ``train`` the images lie in ``root`` itself. The classes are the directories
    there: by number if all names are numbers, else by name. Images that lie there themselves have
    no classes. Without ``root/test`` the share ``data.holdout`` of the images is the test split,
    see `is_held_out`. Each image becomes grey (num_channels 1) or RGB (3), is cropped about its
    centre to the form of image_size rows of image_width (none: a square) and resized to that.

    Raises:
        MissingSplit: there is no ``root/test``, and nothing is held out.
        UserError: there are no images, a class of ``test`` is not in ``train``, something that is
            no file lies among the images, a link leads back to a folder that it lies in, there are
            both a test directory and a held-out share, or a size or num_channels is none.
    """
    domain = domains.images_of(data, "The data set folder")
    require_positive(domain.height, "data.image_size")
    require_positive(domain.width, "data.image_width")
    mode = lookup(MODES, data.num_channels, "data.num_channels")
    root, share = os.path.realpath(data.root), data.get("holdout", 0.0)
    place = training_images(root)
    names = _class_names(root, place)
    has_test = os.path.isdir(os.path.join(root, "test"))
    if has_test and share:
        raise UserError(
            f"{root} has a directory test, so nothing need be held out of train; set "
            "--config.data.holdout=0."
        )
    if split == "test" and has_test:
        place = os.path.join(root, "test")
    elif split == "test" and not share:
        raise MissingSplit(
            f"{root}/test is no directory; expected the test images, laid out as those of train "
            "are, or a share that is held out, such as --config.data.holdout=0.1."
        )
    paths, labels = [], []
    for name in names if split == "train" else _class_names(root, place):
        if name not in names:
            raise UserError(
                f"{place} has the class {name!r}, which {root}/train lacks; expected some "
                f"of {', '.join(names)} (. stands for images without classes)."
            )
        found = _entries(root, os.path.normpath(os.path.join(place, name)))
        if not found and split == "train":
            raise UserError(f"{place}/{name} holds no images; add some or remove it.")
        if share:
            test = split == "test"
            found = [p for p in found if is_held_out(os.path.relpath(p, place), share) == test]
        paths += found
        labels += [names.index(name)] * len(found)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path} is no file; expected nothing but images beside it.")
    if not paths and split == "test" and share:
        raise MissingSplit(
            f"Of the images in {place} the share {share} is none; give a larger one with "
            "--config.data.holdout."
        )
    if not paths and share:
        raise UserError(
            f"All images in {place} are of the held-out share {share}; hold out none with "
            "--config.data.holdout=0, or a share of 0 in scripts/own_images.py."
        )
    if not paths:
        raise UserError(f"{place} holds no images; expected <class>/<image>.")
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
    )


def training_images(root: str | os.PathLike) -> str:
    """The directory of the training images: ``root/train``, or where that is not, `root`."""
    train = os.path.join(root, "train")
    is_split = os.path.isdir(train) or os.path.isdir(os.path.join(root, "test"))
    return train if is_split else str(root)


def is_held_out(name: str, share: float) -> bool:
    """Whether an image is of the held-out `share`, by the hash of its `name` below the folder.

    It stays so when other images are added or the folder is moved.
    """
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _class_names(root, directory):
    """The ordered names of the directories in `directory`; ``"."`` of images without classes."""
    if not os.path.isdir(directory):
        raise UserError(
            f"{directory} is no directory; expected images laid out as train/<class>/<image>, "
            "<class>/<image> or without classes, in the folder that data.root names."
        )
    paths = _entries(root, directory)
    folders = [path for path in paths if os.path.isdir(path)]
    if not folders and paths:
        return ["."]
    if not paths or len(folders) < len(paths):
        other = [path for path in paths if path not in folders] or ["nothing"]
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise UserError(
            f"{directory} holds {', '.join(other[:3])}{more} beside the directories of the "
            "classes; expected images laid out as train/<class>/<image> or <class>/<image>."
        )
    names = [os.path.basename(path) for path in paths]
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else names


def visible(directory: str | os.PathLike) -> list[str]:
    """The sorted names in `directory`, without hidden files and those of file managers."""
    names = sorted(os.listdir(directory))
    return [n for n in names if not n.startswith(".") and n.lower() not in SYSTEM_FILES]


def _entries(root, directory):
    """The sorted paths in `directory`; a UserError if one is a link to a folder that it lies in."""
    paths = [os.path.join(directory, name) for name in visible(directory)]
    for path in filter(os.path.isdir, filter(os.path.islink, [directory, *paths])):
        target = os.path.join(os.path.realpath(path), "")
        above = os.path.realpath(os.path.dirname(path))
        if any(os.path.join(each, "").startswith(target) for each in (root, above)):
            raise UserError(f"{path} links to {target}, a folder that it lies in; remove the link.")
    return paths


def _folder_blocks(paths, labels, shape, mode, classes):
    reader = ImageReader(mode, shape[1:])
    for start in range(0, len(paths), common.BLOCK):
        part = slice(start, start + common.BLOCK)
        images = domains.channels_first(np.stack(reader.read(paths[part])))
        yield block(os.path.dirname(paths[start]), images, labels[part], shape, classes)


class ImageReader:
    """Decodes the images of one data set by a few threads, as `decode_image`, to `mode` and `size`.

    Logs once if one is transparent.
    """

    def __init__(self, mode: str, size: tuple[int, int] | None = None) -> None:
        self.decode = functools.partial(decode_image, mode=mode, size=size)
        self.said = False

    def read(self, paths: Sequence[str | os.PathLike]) -> list[np.ndarray]:
        """The images at `paths`, each uint8 (H, W, C); raises as `decode_image`."""
        # PIL decodes without holding the GIL.
        with concurrent.futures.ThreadPoolExecutor(DECODERS) as pool:
            images, transparent = zip(*pool.map(self.decode, paths))
        if any(transparent) and not self.said:
            path = paths[transparent.index(True)]
            log.warning("%s is transparent; such images are composited over white.", path)
            self.said = True
        return list(images)


def decode_image(
    path: str | os.PathLike, mode: str, size: tuple[int, int] | None
) -> tuple[np.ndarray, bool]:
    """One image file as a viewer shows it, cropped about its centre and resized to `size` (H, W).

    Returns:
        The image, uint8 (H, W, C), at its own size where `size` is None; and whether it was
        transparent anywhere.

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
            ImageOps.exif_transpose(image, in_place=True)
            converted, transparent = _over_white(image)
            if converted.mode != mode:
                converted = converted.convert(mode)
            if size is not None:
                converted = ImageOps.fit(converted, size[::-1], Image.Resampling.BICUBIC)
            array = np.array(converted)
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise UserError(
            f"{path} cannot be read as an image ({error}); expected a whole file of 8 bits a "
            f"channel, {', '.join(IMAGE_FORMATS)}. Convert it or move it away."
        ) from None
    return array.reshape(*array.shape[:2], -1), transparent


def _over_white(image):
    """A PIL image without its transparency; and whether a pixel of it was transparent."""
    if not image.has_transparency_data:
        return image, False
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    if image.getextrema()[3][0] == 255:
        return image, False
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white, True
