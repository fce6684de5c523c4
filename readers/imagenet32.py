"""The pickles of the down-sampled ImageNet of 32×32 pixels."""

import math
import pathlib
import pickle
from typing import Any

import ml_collections
import numpy as np

from readers.common import Source, block, file_stamps
from utils import UserError


def imagenet32(data: ml_collections.ConfigDict, split: str) -> Source:
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
    return Source(shape, classes, blocks, file_stamps(paths), origin=f"read from {directory}")


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays, dicts, lists, strings and numbers; refuses other names."""

    NAMES = (
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.numeric._frombuffer",
    )

    def find_class(self, module: str, name: str) -> Any:
        renamed = module.replace("numpy.core", "numpy._core")  # as NumPy 2 calls it
        if f"{renamed}.{name}" not in self.NAMES:
            raise UserError(f"it names {module}.{name}, which could run code")
        return super().find_class(renamed, name)


def load_pickle(path: pathlib.Path) -> dict[str, Any]:
    """The pickled dict at `path`, written by Python 2 or 3, without running any code of it.

    Raises:
        UserError: the file is damaged, not a dict, or holds other objects than NumPy arrays.
    """
    try:
        with open(path, "rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()  # as Python 2's arrays need
    except Exception as error:  # the unpickler raises many types on damaged files
        raise UserError(f"{path} cannot be read ({error}). Download it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a dict.")
    return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}


def _imagenet_block(path, shape, classes):
    content = load_pickle(path)
    try:
        images, labels = np.asarray(content["data"]), np.asarray(content["labels"])
    except (KeyError, ValueError):  # the latter of lists of different lengths
        images = labels = np.array(None)
    if images.dtype != np.uint8 or images.shape[1:] != (math.prod(shape),):
        raise UserError(
            f"{path} must hold `data`, uint8 [n, {math.prod(shape)}], and `labels`, n integers; it "
            f"holds {', '.join(map(str, content))}. Use the published files of the down-sampled "
            "ImageNet of 32×32 pixels."
        )
    return block(path, images, labels, shape, classes, first_label=1)
