"""The cache's promises (once, whole, noticed when damaged), the order of batches, pixel ranges."""

import os

import numpy as np
import pytest
import torch
from raw_data import config

import datasets
from readers import common
from utils import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(10) % 3


@pytest.fixture
def data(tmp_path):
    """``config.data`` of the data set `tiny` that these tests register."""
    return config(tmp_path, "tiny", 4, 3)


@pytest.fixture
def reads(monkeypatch):
    """Register the data set `tiny`; the list grows by one each time its images are read."""
    reads = []

    def blocks():
        reads.append("read")
        yield common.Block(IMAGES[:6], LABELS[:6])
        yield common.Block(IMAGES[6:], LABELS[6:])

    register(monkeypatch, blocks)
    return reads


def register(monkeypatch, blocks):
    """Register `tiny`, whose images are what the generator function `blocks` yields."""

    def reader(data, split):
        return common.Source((3, 4, 4), 3, blocks(), ["tiny"])

    monkeypatch.setitem(datasets.DATASETS, "tiny", reader)


def is_whole(split):
    return np.array_equal(split.images, IMAGES) and np.array_equal(split.labels, LABELS)


def visible(cache):
    return sorted(name for name in os.listdir(cache) if not name.startswith("."))


# ---------------------------------------------------------------- the cache


def test_images_are_read_once(data, reads):
    split = datasets.load(data, "train")
    assert is_whole(split)
    assert (len(split), split.classes) == (10, 3)
    assert isinstance(split.images, np.memmap)
    assert not split.images.flags.writeable
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
    assert is_whole(datasets.load(data, "train"))
    assert reads == ["read"]
    datasets.load(data, "test")
    assert reads == ["read", "read"]
    assert len(visible(data.cache)) == 2


def test_another_shape_than_the_configs(tmp_path, reads):
    data = config(tmp_path, "tiny", 8, 3)
    with pytest.raises(UserError, match=r"image_size.*\(3, 4, 4\)"):
        datasets.load(data, "train")
    assert reads == []
    assert not os.path.exists(data.cache)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images.bin", "cut"),
        ("images.bin", "lengthened"),
        ("labels.npy", "cut"),
        ("labels.npy", "removed"),
    ],
)
def test_damaged_cache_is_noticed_and_built_again(data, reads, name, change, caplog, monkeypatch):
    datasets.load(data, "train")
    (place,) = visible(data.cache)
    path = os.path.join(data.cache, place, name)
    size = os.path.getsize(path)
    if change == "removed":
        os.unlink(path)
    else:
        os.truncate(path, size + (-1 if change == "cut" else 48))
    monkeypatch.setattr(datasets.log, "propagate", True)  # to where caplog listens
    assert is_whole(datasets.load(data, "train"))
    assert "is damaged" in caplog.text
    assert len(reads) == 2
    assert visible(data.cache) == [place]


def test_reader_that_fails_leaves_nothing(data, monkeypatch):
    def blocks():
        yield common.Block(IMAGES, LABELS)
        raise UserError("the second file is malformed")

    register(monkeypatch, blocks)
    with pytest.raises(UserError, match="malformed"):
        datasets.load(data, "train")
    assert os.listdir(data.cache) == [".tiny.lock"]


def test_cache_that_cannot_be_made(tmp_path, reads):
    (tmp_path / "file").touch()
    data = config(tmp_path / "file", "tiny", 4, 3)
    with pytest.raises(UserError, match=r"--config\.data\.cache"):
        datasets.load(data, "train")


# ---------------------------------------------------------------- batches


@pytest.fixture
def split():
    """Ten images, each of one value that is its index; the label is the index, too."""
    images = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 3, 4, 4))
    return datasets.Split(images, np.arange(10), 10)


def draw(batches, count):
    """The labels of the next `count` batches, in order."""
    return [next(batches)[1].tolist() for _ in range(count)]


def test_batches_hold_images_with_their_labels(split):
    images, labels = next(datasets.TrainBatches(split, 4, seed=0))
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 4, 4))
    assert (labels.dtype, labels.shape) == (torch.int64, (4,))
    assert torch.equal(images.long(), labels[:, None, None, None].expand(4, 3, 4, 4))


@pytest.mark.parametrize("batch_size", [4, 25])
def test_every_epoch_visits_every_image_once(split, batch_size):
    batches = datasets.TrainBatches(split, batch_size, seed=3)
    order = np.concatenate(draw(batches, 100 // batch_size)).reshape(-1, 10)
    assert np.array_equal(np.sort(order), np.broadcast_to(np.arange(10), (10, 10)))
    assert len(np.unique(order, axis=0)) == 10  # each epoch has an order of its own
    assert batches.position == 100


@pytest.mark.parametrize(("batch_size", "stop"), [(3, 7), (10, 1), (25, 2)])
def test_resuming_equals_going_on(split, batch_size, stop):
    whole = datasets.TrainBatches(split, batch_size, seed=1)
    expected = draw(whole, 12)
    first = datasets.TrainBatches(split, batch_size, seed=1)
    begun = draw(first, stop)
    rest = datasets.TrainBatches(split, batch_size, seed=1, position=first.position)
    assert begun + draw(rest, 12 - stop) == expected
    assert rest.position == whole.position == 12 * batch_size


def test_order_depends_on_the_seed_and_not_on_the_batch_size(split):
    by_four = np.ravel(draw(datasets.TrainBatches(split, 4, seed=1), 5))
    by_five = np.ravel(draw(datasets.TrainBatches(split, 5, seed=1), 4))
    other = np.ravel(draw(datasets.TrainBatches(split, 5, seed=2), 4))
    assert np.array_equal(by_four, by_five)
    assert not np.array_equal(by_four, other)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (64, [10])])
def test_evaluation_visits_every_image_once_in_order(data, reads, batch_size, sizes):
    batches = list(datasets.eval_batches(datasets.load(data, "test"), batch_size))
    assert [len(images) for images, _ in batches] == sizes
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
