"""MNIST's IDX files, plain or compressed."""

import gzip
import itertools
import math
import pathlib
import struct
import zlib

import ml_collections
import numpy as np

from readers.common import Source, block, file_stamps
from readers.tfds import tfds
from utils import UserError


def idx_or_tfds(data: ml_collections.ConfigDict, split: str, *, name: str) -> Source:
    """A set like MNIST: the four IDX files in ``root/name``, plain or .gz, else tfds's `name`.

    Raises:
        UserError: some but not all of the four files are there.
    """
    shape, classes = (1, 28, 28), 10
    directory = pathlib.Path(data.root) / name
    stems = [
        f"{part}-{kind}-ubyte"
        for part, kind in itertools.product(("train", "t10k"), ("images-idx3", "labels-idx1"))
    ]
    found = {}
    for stem, suffix in itertools.product(stems, (".gz", "")):  # a plain file is preferred
        if (directory / (stem + suffix)).is_file():
            found[stem] = directory / (stem + suffix)
    if not found:
        advice = f"Put {', '.join(stem + '.gz' for stem in stems)} into {directory}."
        return tfds(data, split, name=name, shape=shape, classes=classes, advice=advice)
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise UserError(
            f"{directory} lacks {', '.join(missing)}; expected all four IDX files, plain or .gz. "
            "Add what is missing, or remove the directory to have the set downloaded."
        )
    images, labels = (found[stem] for stem in (stems[:2] if split == "train" else stems[2:]))
    blocks = _idx_blocks(images, labels, shape, classes)
    stamps = file_stamps([images, labels])
    return Source(shape, classes, blocks, stamps, origin=f"read from {directory}")


def _idx_blocks(images_path, labels_path, shape, classes):
    images = read_idx(images_path, shape[1:])
    labels = read_idx(labels_path, ())
    yield block(f"{images_path} with {labels_path.name}", images, labels, shape, classes)


def read_idx(path: pathlib.Path, item_shape: tuple[int, ...]) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or .gz: uint8 (n, *item_shape).

    The header is two zero bytes, the type (8: unsigned byte), the number of dimensions, then each
    dimension as a big-endian 32-bit number.

    Raises:
        UserError: the file is damaged, of another type or shape, or not as long as its header says.
    """
    rank = 1 + len(item_shape)
    header = struct.Struct(f">4s{rank}I")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
        magic, *shape = header.unpack_from(content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} is damaged ({error}). Download it again.") from None
    found = len(content) - header.size
    if magic != bytes([0, 0, 8, rank]) or shape[1:] != [*item_shape] or found != math.prod(shape):
        raise UserError(
            f"{path} has the type {magic.hex()}, the shape {shape} and {found} bytes of data; "
            f"expected an IDX file of n items of {item_shape}, unsigned bytes. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header.size).reshape(shape)
