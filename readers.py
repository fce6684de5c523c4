"""Raw image sets as their publishers give them: tfds, IDX files, ImageNet-32's pickles, digits.

A reader is a function ``reader(data, split) -> Source``: `data` is ``config.data``, `split` is
``"train"`` or ``"test"``. It looks at names and sizes only; the images are read when
``Source.blocks`` is walked, which `datasets` does once, to build its cache.

Every file is somebody else's: what does not fit is a UserError that names the file, what was
found and what was expected.
"""

import contextlib
import gzip
import io
import itertools
import math
import os
import pathlib
import struct
import types
import zlib
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

import array_pickle
from utils import UserError, require_plausible

BLOCK = 100  # images read before they are written on


class Block(NamedTuple):
    """Some images, uint8 (n, C, H, W), and their labels from 0, int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray


class Source(NamedTuple):
    """One split of a raw data set, before it is read.

    Attributes:
        shape: (C, H, W) of every image.
        classes: how many labels there are.
        blocks: the images in order; an iterator that reads as it goes.
        identity: what a cached copy depends on, such as files with their sizes and times.
        count: the number of images where it is known beforehand, for the progress bar.
    """

    shape: tuple[int, int, int]
    classes: int
    blocks: Iterator[Block]
    identity: list[str]
    count: int | None = None


def block(origin, images, labels, shape, classes, first_label=0) -> Block:
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


def file_stamps(paths) -> list[str]:
    """Path, size and time of change of each file: a copy made of them is stale if one differs."""
    stamps = []
    for path in paths:
        status = os.stat(path)
        stamps.append(f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}")
    return stamps


# ---------------------------------------------------------------- tensorflow_datasets


def tfds(data, split, *, name, shape, classes) -> Source:
    """A set that tensorflow_datasets knows as `name`, kept in ``root/tensorflow_datasets``."""
    directory = pathlib.Path(data.root) / "tensorflow_datasets"
    return Source(shape, classes, _tfds_blocks(directory, split, name, shape, classes), [])


def _tfds_blocks(directory, split, name, shape, classes):
    import tensorflow_datasets

    builder_class = tensorflow_datasets.builder_cls(name)
    try:
        # The default format cannot be read without TensorFlow.
        builder = builder_class(data_dir=directory, file_format="array_record")
        with _tensorflow_stand_in():
            builder.download_and_prepare()
        examples = builder.as_data_source(split)
        for start in range(0, len(examples), BLOCK):
            part = [examples[i] for i in range(start, min(start + BLOCK, len(examples)))]
            images = np.stack([example["image"] for example in part]).transpose(0, 3, 1, 2)
            labels = np.array([example["label"] for example in part])
            yield block(f"tfds {name}", images, labels, shape, classes)
    except UserError:
        raise
    except Exception as error:  # tfds lets through whatever its network, disk and parsers raise
        urls = ", ".join(builder_class.url_infos)
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"tensorflow_datasets could not prepare {name} ({type(error).__name__}: {reason}). "
            f"Without a network, fetch {urls} elsewhere and put it into "
            f"{directory / 'downloads' / 'manual'}, or copy {directory / name} from a machine "
            f"where it is prepared. If {directory / name} is there but damaged, remove it."
        ) from error


@contextlib.contextmanager
def _tensorflow_stand_in():
    """Let tfds prepare a data set without TensorFlow, whether or not that is installed.

    tfds 4.9 reads prepared sets without TensorFlow, but needs four functions of it to prepare
    one. They stand here in the place where tfds would import TensorFlow at their first use.
    """
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.utils import lazy_imports_utils

    stand_in = types.SimpleNamespace(
        compat=types.SimpleNamespace(as_text=str),
        executing_eagerly=lambda: True,
        image=types.SimpleNamespace(encode_png=_encode_png),
        io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)),
    )
    with (
        mock.patch.dict(vars(lazy_imports_utils.tensorflow), _module=stand_in),
        mock.patch.object(downloader, "MAX_RETRIES", 4),  # 10 would wait for over three minutes
    ):
        yield


def _encode_png(image):
    """``tf.image.encode_png`` of uint8 (H, W, 1 or 3): its bytes come from ``.numpy()``."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return types.SimpleNamespace(numpy=file.getvalue)


# ---------------------------------------------------------------- MNIST's IDX files


def idx_or_tfds(data, split, *, name) -> Source:
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
        return tfds(data, split, name=name, shape=shape, classes=classes)
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise UserError(
            f"{directory} lacks {', '.join(missing)}; expected all four IDX files, plain or .gz. "
            "Add what is missing, or remove the directory to have the set downloaded."
        )
    images, labels = (found[stem] for stem in (stems[:2] if split == "train" else stems[2:]))
    blocks = _idx_blocks(images, labels, shape, classes)
    return Source(shape, classes, blocks, file_stamps([images, labels]))


def _idx_blocks(images_path, labels_path, shape, classes):
    images = read_idx(images_path, shape[1:])
    labels = read_idx(labels_path, ())
    yield block(f"{images_path} with {labels_path.name}", images, labels, shape, classes)


def read_idx(path, item_shape) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or .gz: uint8 (n, *item_shape).

    The header is two zero bytes, the type (8: unsigned byte), the number of dimensions, then each
    dimension as a big-endian 32-bit number.

    Raises:
        UserError: the file is damaged, of another type or shape, longer or shorter than its
            header says, or too small for what its header says.
    """
    rank = 1 + len(item_shape)
    expected_magic = bytes([0, 0, 8, rank])
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            magic = file.read(4)
            if magic != expected_magic:
                raise UserError(
                    f"{path} begins with {magic.hex() or 'nothing'}; expected "
                    f"{expected_magic.hex()}, an IDX file of bytes in {rank} dimensions."
                )
            count, *found_shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            if tuple(found_shape) != tuple(item_shape):
                raise UserError(
                    f"{path} holds images of shape {tuple(found_shape)}; expected {item_shape}."
                )
            size = count * math.prod(item_shape)
            require_plausible(path, size)
            content = file.read(size + 1)  # one more, to notice a file that is too long
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} is damaged ({error}). Fetch it again.") from None
    if len(content) != size:
        found = f"{len(content)} bytes" if len(content) < size else f"more than {size} bytes"
        raise UserError(
            f"{path} holds {found} after its header; expected {size}, for {count} items. "
            "Fetch it again."
        )
    return np.frombuffer(content, np.uint8).reshape(count, *item_shape)


# ---------------------------------------------------------------- ImageNet-32's pickles


def imagenet32(data, split) -> Source:
    """Down-sampled ImageNet (Chrabaszcz et al., 2017, arXiv 1707.08819) in ``root/imagenet32``.

    Raises:
        UserError: a file is missing.
    """
    shape, classes = (3, 32, 32), 1000
    directory = pathlib.Path(data.root) / "imagenet32"
    batches = {"train": [f"train_data_batch_{i}" for i in range(1, 11)], "test": ["val_data"]}
    missing = [name for name in batches[split] if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory} lacks {', '.join(missing)}. Fetch the down-sampled ImageNet of 32×32 "
            "pixels from https://image-net.org/download-images (after logging in) and unpack "
            "train_data_batch_1 to train_data_batch_10 and val_data into that directory."
        )
    paths = [directory / name for name in batches[split]]
    blocks = (_imagenet_block(path, shape, classes) for path in paths)
    return Source(shape, classes, blocks, file_stamps(paths))


def _imagenet_block(path, shape, classes):
    content = array_pickle.load(path)
    content = content if isinstance(content, dict) else {}
    images, labels = content.get("data"), content.get("labels")
    # A list is looked at before NumPy copies it: lists of one list are small in a file only.
    if isinstance(labels, list) and all(isinstance(label, int) for label in labels):
        labels = np.array(labels)
    fits = (
        isinstance(images, np.ndarray)
        and (images.dtype, images.ndim) == (np.uint8, 2)
        and images.shape[1] == math.prod(shape)
        and isinstance(labels, np.ndarray)
        and labels.dtype.kind in "iu"
    )
    if not fits:
        raise UserError(
            f"{path} does not hold a dict of `data`, uint8 [n, {math.prod(shape)}], and `labels`, "
            "n whole numbers; expected a file of the published down-sampled ImageNet of 32×32 "
            "pixels."
        )
    return block(path, images, labels, shape, classes, first_label=1)


# ---------------------------------------------------------------- scikit-learn's digits


def digits(data, split) -> Source:
    """The 1,797 handwritten 8×8 digits inside scikit-learn; a fifth of each class is the test."""
    return Source((1, 8, 8), 10, _digits_blocks(split), [])


def _digits_blocks(split):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    indices = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    chosen = np.sort(indices[0] if split == "train" else indices[1])
    images = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
    yield block("scikit-learn's digits", images, labels[chosen], (1, 8, 8), 10)
