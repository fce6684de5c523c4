"""Data sets as memory-mapped arrays, and batches drawn from them.

A data set is an entry of `DATASETS`: its name and its reader, see `readers.common`. `load` reads a
split once, into ``data.cache``, and memory-maps it. Images are uint8 (N, C, H, W), points float32
(N, D); the domain's `to_model` scales a batch to the model's range on the batch's device.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
import torch
from tqdm import tqdm

import domains
from readers.class_names import CLASS_NAMES
from readers.common import MissingSplit, Source
from readers.digits import digits
from readers.folder import folder
from readers.idx import idx_or_tfds
from readers.imagenet32 import imagenet32
from readers.points import checkerboard, gaussian_8, moons, points, spiral_2
from readers.tfds import tfds
from storage.files import atomic_write, file_lock
from utils import UserError, log, lookup, random_stream

# The name in `config.data.dataset` -> its reader. A new data set is added here.
DATASETS = {
    "CIFAR10": functools.partial(tfds, name="cifar10", shape=(3, 32, 32), classes=10),
    "CIFAR100": functools.partial(tfds, name="cifar100", shape=(3, 32, 32), classes=100),
    "SVHN": functools.partial(tfds, name="svhn_cropped", shape=(3, 32, 32), classes=10),
    "imagenet": imagenet32,
    "MNIST": functools.partial(idx_or_tfds, name="mnist"),
    "FashionMNIST": functools.partial(idx_or_tfds, name="fashion_mnist"),
    "digits": digits,
    "folder": folder,
    "moons": functools.partial(points, draw=moons, classes=2),
    "checkerboard": functools.partial(points, draw=checkerboard),
    "gaussian_8": functools.partial(points, draw=gaussian_8),
    "spiral_2": functools.partial(points, draw=spiral_2),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set; ``len()`` is its number of images or points.

    Attributes:
        images: uint8 (N, C, H, W), or points, float32 (N, D); memory-mapped, read-only.
        labels: int64 (N,), each in [0, classes).
        classes: the number of classes.
        class_names: in the order of the labels; empty where they are not known.
        identity: the name of the data set, `classes` (names), `counts` of images, and a `hash` of
            file names and sizes; it does not depend on the folder.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    class_names: tuple[str, ...] = ()
    identity: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)


# ---------------------------------------------------------------- the cache


def load(data: ml_collections.ConfigDict, split: str) -> Split:
    """Open a split of ``data.dataset``, building its cache under ``data.cache`` at first use.

    The cache is built under a lock, in a directory that is renamed when it is complete. Its name
    depends on the paths, sizes and times of the raw files: changed files are read again.

    Args:
        data: ``config.data``.
        split: ``"train"`` or ``"test"``.

    Raises:
        UserError: the data set is unknown, its shape differs from the configuration's domain, raw
            files are missing or malformed, or the cache cannot be written.
    """
    raw = source(data, split)
    place = _place(data, split, raw)
    if (cached := _open(place, raw)) is None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(place.parent / f".{data.dataset}.lock"):
                # Another process may have built it meanwhile.
                if (cached := _open(place, raw)) is None:
                    _build(place, raw, data.dataset, split)
                    cached = _open(place, raw)
        except OSError as error:
            raise UserError(
                f"The cache {place.parent} cannot be written ({error.strerror}); make room there "
                "or name another directory with --config.data.cache."
            ) from None
    names = raw.class_names or CLASS_NAMES.get(data.dataset, ())
    identity = _identity(data.dataset, names, cached, raw.files)
    return dataclasses.replace(cached, class_names=names, identity=identity)


def open_cached(data: ml_collections.ConfigDict, split: str) -> Split | None:
    """The split without its names, if its cache is there; nothing is read, fetched or written.

    Raises:
        UserError: as `source`.
    """
    raw = source(data, split)
    return _open(_place(data, split, raw), raw)


def source(data: ml_collections.ConfigDict, split: str) -> Source:
    """The raw data of a split, of the shape that ``config.data`` describes; no image is read.

    Raises:
        UserError: as `load`.
    """
    try:
        found = lookup(DATASETS, data.dataset, "data.dataset")(data, split)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from None
    domains.from_config(data).require_shape(found.shape, data.dataset)
    return found


def describe(data: ml_collections.ConfigDict, split: str) -> str:
    """A text that says where a split is or will come from; nothing is read.

    Raises:
        UserError: as `source`.
    """
    raw = source(data, split)
    place = _place(data, split, raw)
    if (cached := _open(place, raw)) is None:
        return f"{data.dataset}, {split}: {raw.origin}, then kept in {data.cache}"
    return f"{data.dataset}, {split}: {len(cached)} prepared in {place}"


def require_classes(data: ml_collections.ConfigDict, classes: int | None, field: str) -> None:
    """Raise a UserError if `classes`, the value of `field`, is not the data's number of classes."""
    found = source(data, "train").classes
    if classes is not None and classes != found:
        raise UserError(
            f"{field} is {classes}, but {data.dataset} has {found} classes; they must be the same."
        )


def _place(data, split, raw):
    """The directory of the cache of a split."""
    key = _hash(str(raw.shape), *raw.identity)
    return pathlib.Path(data.cache) / f"{data.dataset}-{split}-{key}"


def _hash(*texts):
    return hashlib.sha256("\n".join(texts).encode(errors="surrogateescape")).hexdigest()[:16]


def load_both(
    data: ml_collections.ConfigDict, classes: int | None = None, field: str = ""
) -> tuple[Split, Split | None]:
    """The training split, and the test split or None where the set has none.

    Raises:
        UserError: as `load`, or as `require_classes`.
    """
    require_classes(data, classes, field)
    train = load(data, "train")
    try:
        return train, load(data, "test")
    except MissingSplit:
        return train, None


def _open(place, raw):
    """The Split cached in the directory `place`; None if there is none or it is damaged."""
    if not place.exists():
        return None
    try:
        labels = np.load(place / "labels.npy", allow_pickle=False)
        shape = len(labels), *raw.shape
        images = np.memmap(place / "images.bin", raw.dtype, "r")
        return Split(images.reshape(shape), labels, raw.classes)
    except (OSError, EOFError, ValueError) as error:
        log.warning("The cache %s is damaged (%s); it will be rebuilt.", place, error)
        return None


def _build(place, raw, dataset, split):
    """Write the blocks of `raw` to the directory `place`."""
    name = f"{dataset} {split}"
    log.info("Preparing %s in %s.", name, place)
    temporary = place.parent / f".{dataset}.building"
    try:
        # Under the lock, files that are here were left by a killed process.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        labels = []
        with (
            tqdm(desc=f"Preparing {name}", unit=" images", total=raw.count, delay=5) as progress,
            atomic_write(temporary / "images.bin") as file,
        ):
            for block in raw.blocks:
                file.write(np.ascontiguousarray(block.images))
                labels.append(block.labels)
                progress.update(len(block.labels))
        labels = np.concatenate(labels)
        if not len(labels):
            raise UserError(f"{name} holds no images.")
        with atomic_write(temporary / "labels.npy") as file:
            np.save(file, labels)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    classes = f", {raw.classes} classes" if raw.classes > 1 else ""
    log.info("Prepared %s: %d images%s.", name, len(labels), classes)


# ---------------------------------------------------------------- which data


def _identity(dataset, names, split, files):
    """The `Split.identity`; without files its hash is that of the labels and image shapes."""
    labels = hashlib.sha256(split.labels).hexdigest()
    return {
        "dataset": dataset,
        "classes": list(names),
        "counts": np.bincount(split.labels, minlength=split.classes).tolist(),
        "hash": _hash(*names, *files) if files else _hash(str(split.images.shape), labels),
    }


def require_same_data(
    now: dict[str, Any] | None, before: dict[str, Any] | None, where: str | os.PathLike
) -> None:
    """Raise a UserError if the checkpoint `where` was trained on other data.

    Args:
        now: the identity of the training split, if it has one.
        before: the checkpoint's, or some fields of it; None for a checkpoint without one.

    Raises:
        UserError: they differ; names the first field that differs.
    """
    if now is None or before is None:
        return
    for field, value in before.items():
        if now.get(field) != value:
            raise UserError(
                f"{where} was trained on other data: {field} was {value}, and is now "
                f"{now.get(field)}. Restore the data, or begin another run with another --workdir."
            )


# ---------------------------------------------------------------- batches


class TrainBatches:
    """Endless batches: each epoch visits every image once, in an order drawn for that epoch.

    The order is a function of the seed alone, and `position` is the number of images drawn so
    far, so that ``TrainBatches(split, batch_size, seed, position)`` continues where another left
    off. A batch may begin in one epoch and end in a later one.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, position: int = 0) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.position = position
        self._images = np.asarray(split.images)  # indexing a memmap itself costs more
        self._epoch, self._order = None, None

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next images or points (B, …) and their labels, int64 (B,), on the CPU."""
        indices = []
        missing = self.batch_size
        while missing:
            epoch, offset = divmod(self.position, len(self.split))
            if epoch != self._epoch:
                stream = random_stream("epoch", self.seed, epoch)
                self._epoch, self._order = epoch, stream.permutation(len(self.split))
            part = self._order[offset : offset + missing]
            indices.append(part)
            self.position += len(part)
            missing -= len(part)
        indices = np.concatenate(indices)
        return torch.from_numpy(self._images[indices]), torch.from_numpy(self.split.labels[indices])


def fixed_batch(split: Split, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same `count` images (all, where there are fewer) and labels at every call."""
    chosen = np.sort(random_stream("fixed batch", seed).permutation(len(split))[:count])
    return torch.from_numpy(split.images[chosen]), torch.from_numpy(split.labels[chosen])


def evenly(split: Split, count: int | None) -> Split:
    """`count` images of the split, evenly spaced in it; None: the whole split.

    Raises:
        UserError: it holds fewer.
    """
    if count is None:
        return split
    if count > len(split):
        raise UserError(f"config.eval.num_images is {count}; the split holds {len(split)} images.")
    chosen = np.arange(count) * len(split) // count
    return dataclasses.replace(split, images=split.images[chosen], labels=split.labels[chosen])


def eval_batches(split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every image once, in order, (B, …) and int64 (B,); the last batch may be smaller."""
    for start in range(0, len(split), batch_size):
        part = slice(start, start + batch_size)
        yield torch.tensor(split.images[part]), torch.tensor(split.labels[part])


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy `x` from the host to `device`, asynchronously to a GPU."""
    if device.type == "cuda":
        x = x.pin_memory()  # an asynchronous copy needs it
    return x.to(device, non_blocking=True)
