"""The pickles of the down-sampled ImageNet of 32×32 pixels."""

import math
import pathlib

import ml_collections
import numpy as np

from readers.common import Source, block, file_stamps
from storage import array_pickle
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
