"""The interface of readers of raw data sets.

A reader is a function ``reader(data, split) -> Source``: `data` is ``config.data``, `split` is
``"train"`` or ``"test"``. It reads names and sizes only; iterating over ``Source.blocks`` reads the
images. A file that does not fit raises a UserError that names it.
"""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from utils import UserError

BLOCK = 100  # images of a block


class MissingSplit(UserError):
    """The data set has no such split."""


class Block(NamedTuple):
    """Some images, uint8 (n, C, H, W), or points, and their labels from 0, int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray


class Source(NamedTuple):
    """One split of a raw data set, before it is read.

    Attributes:
        shape: (C, H, W) of every image, (D,) of points.
        classes: the number of classes.
        blocks: the images in order, read as they are iterated over.
        identity: strings that a cached copy depends on, such as files with their sizes and times.
        count: the number of images, for the progress bar, or None.
        dtype: of the images; points are float32.
        class_names: in the order of the labels; empty where they are not known.
        files: name and size of each image file, relative to the data set; empty without such files.
        origin: where the images come from, as text, for the plan of a dry run.
    """

    shape: tuple[int, ...]
    classes: int
    blocks: Iterator[Block]
    identity: list[str]
    count: int | None = None
    dtype: np.dtype = np.dtype(np.uint8)
    class_names: tuple[str, ...] = ()
    files: Sequence[str] = ()
    origin: str = "made at the first use"


def block(
    origin: object,
    images: np.ndarray,
    labels: np.ndarray,
    shape: tuple[int, int, int],
    classes: int,
    first_label: int = 0,
) -> Block:
    """Check what was read from `origin` and number its labels from 0.

    Args:
        images: uint8 of n · C · H · W elements, in that order.
        labels: n integers in [first_label, first_label + classes).

    Raises:
        UserError: the numbers of images and labels differ, or a label is out of range.
    """
    images, labels = images.reshape(-1, *shape), labels.astype(np.int64)
    if labels.shape != (len(images),):
        raise UserError(
            f"{origin} holds {len(images)} images and {labels.size} labels; expected one label "
            "for each image. Fetch it again."
        )
    last_label = first_label + classes - 1
    if len(labels) and not (first_label <= labels.min() and labels.max() <= last_label):
        raise UserError(
            f"The labels of {origin} run from {labels.min()} to {labels.max()}; "
            f"expected {first_label} to {last_label}. Fetch it again."
        )
    return Block(images, labels - first_label)


def file_stamps(paths: Iterable[pathlib.Path]) -> list[str]:
    """Path, size and modification time of each file."""
    stamps = []
    for path in paths:
        status = os.stat(path)
        stamps.append(f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}")
    return stamps
