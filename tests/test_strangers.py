"""Damaged and foreign array files, pickles and IDX files: refused with a sentence, or unharmed."""

import gzip
import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from raw_data import random_images
from strangers import Calls, reads, spoiled
from test_readers import GOOD as GOOD_IDX
from test_readers import python2_pickle

from readers import imagenet32
from readers.idx import read_idx
from storage.files import load_npz
from utils import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strangers")


def write(folder, content, name="file"):
    path = folder / name
    path.write_bytes(content)
    return path


def npz(**arrays):
    """The bytes of an ``.npz``."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


# ---------------------------------------------------------------- .npz

ARRAYS = {"samples": random_images(3, 4, 4, 1), "nfe": np.array(7), "meta": np.array('{"a": 1}')}
GOOD_NPZ = npz(**ARRAYS)


@pytest.mark.slow
@given(spoiled(GOOD_NPZ))
def test_a_damaged_npz_is_refused_or_unharmed(folder, content):
    """The archive's checksums tell."""
    found = reads(load_npz, write(folder, content), *ARRAYS)
    for name in found or ():
        np.testing.assert_array_equal(found[name], ARRAYS[name], strict=True)


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (npz(samples=np.array([Calls(os.system, "true")], dtype=object)), "plain arrays"),
        (npz(samples=np.array([1, np.nan])), "NaN"),
        (npz(samples=np.array([1, np.inf], np.float32)), "infinite"),
        (npz(other=np.zeros(3)), "other"),
        (npy(), "npz"),
        (b"", "npz"),
        (b"text", "npz"),
    ],
)
def test_what_is_no_npz_of_numbers_gets_a_sentence(folder, content, named):
    path = write(folder, content)
    with pytest.raises(UserError, match=named) as caught:
        load_npz(path, "samples")
    assert str(path) in str(caught.value)
    assert reads(load_npz, path, "samples") is None


# ---------------------------------------------------------------- ImageNet's pickles and IDX files

IMAGES = random_images(2, 3072)
GOOD_PICKLES = [
    *(pickle.dumps({"data": IMAGES, "labels": [1, 9]}, protocol=n) for n in (2, 4, 5)),
    python2_pickle(IMAGES, [1, 9]),
]


@pytest.mark.parametrize("good", GOOD_PICKLES)
def test_a_pickle_that_is_cut_short_is_refused(folder, good):
    assert reads(imagenet32.load_pickle, write(folder, good))["labels"] == [1, 9]
    for length in range(0, len(good), 500):
        assert reads(imagenet32.load_pickle, write(folder, good[:length])) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "file.gz"])
@given(content=spoiled(GOOD_IDX))
def test_a_damaged_idx_is_refused_or_images(folder, name, content):
    content = gzip.compress(content, 1) if name.endswith(".gz") else content
    images = reads(read_idx, write(folder, content, name), (28, 28))
    assert images is None or (images.dtype, images.shape[1:]) == (np.uint8, (28, 28))
