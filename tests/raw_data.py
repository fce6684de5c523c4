"""What the tests of the readers share: configurations, random pixels, refusals, hostile pickles."""

import os

import ml_collections
import numpy as np
import pytest

import datasets
from utils import UserError


def config(tmp_path, dataset, size, channels, root=None):
    """``config.data`` with its raw files and cache under `tmp_path`."""
    return ml_collections.ConfigDict(
        {
            "dataset": dataset,
            "image_size": size,
            "num_channels": channels,
            "root": str(root or tmp_path / "raw"),
            "cache": str(tmp_path / "cache"),
        }
    )


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refused(data, split, *parts):
    """Loading raises a UserError with all of `parts` in its text, and caches nothing."""
    with pytest.raises(UserError) as error:
        datasets.load(data, split)
    for part in parts:
        assert str(part) in str(error.value)
    cache = os.listdir(data.cache) if os.path.isdir(data.cache) else []
    assert [name for name in cache if not name.endswith(".lock")] == []


def pairs(images, labels):
    """Pixels and label of every image, sorted."""
    return sorted((i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True))


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
