"""Every raw format from small files written here, and the sentence for each way to be malformed."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import scipy.io
from raw_data import Calls, config, pairs, random_images, refused

import datasets
from readers import common

# ---------------------------------------------------------------- tfds


@pytest.mark.parametrize(
    ("dataset", "name", "size", "channels", "classes", "split"),
    [
        ("CIFAR10", "cifar10", 32, 3, 10, "train"),
        ("CIFAR100", "cifar100", 32, 3, 100, "test"),
        ("FashionMNIST", "fashion_mnist", 28, 1, 10, "train"),
    ],
)
def test_tfds_mocked(tmp_path, dataset, name, size, channels, classes, split, monkeypatch):
    import tensorflow_datasets

    monkeypatch.setattr(common, "BLOCK", 3)  # so that 7 images are several blocks
    with tensorflow_datasets.testing.mock_data(num_examples=7):
        loaded = datasets.load(config(tmp_path, dataset, size, channels), split)
        builder = tensorflow_datasets.builder(name, file_format="array_record")
        expected = list(builder.as_data_source(split))
        names = builder.info.features["label"].names
    assert loaded.images.shape == (7, channels, size, size)
    assert loaded.classes == len(loaded.class_names) == classes
    # The other sets' labels are in the order of their names.
    assert list(loaded.class_names) == (
        names if dataset == "FashionMNIST" else sorted({*loaded.class_names})
    )
    for image, label, example in zip(loaded.images, loaded.labels, expected, strict=True):
        np.testing.assert_array_equal(image, example["image"].transpose(2, 0, 1))
        assert label == example["label"]


def check_preparation(root):
    """Prepare CIFAR-10 and SVHN from archives like the published ones, in a fresh interpreter."""
    from tensorflow_datasets.core.download.download_manager import DownloadManager

    # Only their checksums cannot be like the published ones'.
    DownloadManager._register_or_validate_checksums = lambda self, url, url_info, path: (
        self._recorded_url_infos.update({url: url_info})
    )
    manual = root / "raw" / "tensorflow_datasets" / "downloads" / "manual"
    manual.mkdir(parents=True)
    images, labels = random_images(30, 3, 32, 32), np.arange(30) % 10

    records = [bytes([y]) + image.tobytes() for image, y in zip(images, labels, strict=True)]
    files = {f"data_batch_{k + 1}.bin": b"".join(records[k::5]) for k in range(5)}
    files["test_batch.bin"] = b"".join(records)
    files["batches.meta.txt"] = "\n".join("abcdefghij").encode()
    with tarfile.open(manual / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for part in ("train", "test", "extra"):
        content = {"X": images.transpose(2, 3, 1, 0), "y": (labels[:, None] + 9) % 10 + 1}
        scipy.io.savemat(manual / f"{part}_32x32.mat", content)

    for dataset in ("CIFAR10", "SVHN"):
        loaded = datasets.load(config(root, dataset, 32, 3), "train")
        # tfds shuffles, so the order tells nothing.
        assert pairs(loaded.images, loaded.labels) == pairs(images, labels)
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]


@pytest.mark.slow
def test_tfds_prepares_without_tensorflow(tmp_path):
    """From the publishers' archives to images, beside a TensorFlow that must not be imported."""
    stub, witness = tmp_path / "stub" / "tensorflow", tmp_path / "imported"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(f"open({str(witness)!r}, 'w')\nraise ImportError\n")
    script = (
        f"import pathlib, test_readers as t; t.check_preparation(pathlib.Path({str(tmp_path)!r}))"
    )
    places = [stub.parent, os.path.dirname(datasets.__file__), os.path.dirname(__file__)]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not witness.exists()


def test_tfds_without_network(tmp_path, monkeypatch):
    from tensorflow_datasets.core.download.download_manager import DownloadManager

    def no_network(self, urls):
        raise ConnectionError("Name or service not known\n* Expected: this\n* Got: that")

    monkeypatch.setattr(DownloadManager, "download_and_extract", no_network)
    data = config(tmp_path, "CIFAR10", 32, 3)
    manual = os.path.join(data.root, "tensorflow_datasets", "downloads", "manual")
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    refused(data, "train", "cifar10", "Name or service not known", "Got: that", url, manual)
    assert f"downloaded by tensorflow_datasets into {data.root}" in datasets.describe(data, "train")


def test_without_connection_a_sentence_names_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two trials
    data = config(tmp_path, "FashionMNIST", 28, 1)
    refused(data, "train", "no connection to fashion-mnist", "t10k-labels", "raw/fashion_mnist")


# ---------------------------------------------------------------- IDX


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx(directory, suffix="", train_count=12, test_count=4):
    """The four files of MNIST; returns {split: (images, labels)}."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, stem, count in (("train", "train", train_count), ("test", "t10k", test_count)):
        images = random_images(count, 28, 28, seed=count)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            opened = gzip.open if suffix else open
            with opened(directory / f"{stem}-{kind}-ubyte{suffix}", "wb") as file:
                file.write(idx_bytes(array))
        splits[split] = images, labels
    return splits


@pytest.mark.parametrize(
    ("dataset", "name", "suffix"),
    [("MNIST", "mnist", ""), ("FashionMNIST", "fashion_mnist", ".gz")],
)
def test_idx(tmp_path, dataset, name, suffix):
    written = write_idx(tmp_path / "raw" / name, suffix)
    for split, (images, labels) in written.items():
        loaded = datasets.load(config(tmp_path, dataset, 28, 1), split)
        np.testing.assert_array_equal(loaded.images, images[:, None])
        np.testing.assert_array_equal(loaded.labels, labels)
        assert loaded.classes == 10


def test_idx_incomplete(tmp_path):
    directory = tmp_path / "raw" / "mnist"
    write_idx(directory)
    (directory / "t10k-labels-idx1-ubyte").unlink()
    refused(config(tmp_path, "MNIST", 28, 1), "train", directory, "t10k-labels-idx1-ubyte")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GOOD = idx_bytes(random_images(12, 28, 28))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (IMAGES, b"", [IMAGES]),
        (IMAGES, GOOD[:-1], [12 * 784 - 1]),
        (IMAGES, idx_bytes(random_images(12, 32, 32)), [32, 28]),
        (IMAGES, idx_bytes(random_images(11, 28, 28)), ["11 images", "12 labels"]),
        (LABELS, idx_bytes(np.arange(12, dtype=np.uint8)), ["0 to 11", "0 to 9"]),
        (IMAGES + ".gz", gzip.compress(GOOD)[:-20], [IMAGES]),
    ],
)
def test_idx_malformed(tmp_path, name, content, parts):
    directory = tmp_path / "raw" / "mnist"
    write_idx(directory)
    if name.endswith(".gz"):
        (directory / name.removesuffix(".gz")).unlink()
    (directory / name).write_bytes(content)
    refused(config(tmp_path, "MNIST", 28, 1), "train", directory, *parts)


# ---------------------------------------------------------------- ImageNet-32


def write_imagenet(directory, per_file=3):
    """All eleven files with `per_file` images each; returns {split: (images, labels from 0)}."""
    directory.mkdir(parents=True)
    images = random_images(11 * per_file, 3072)
    labels = np.linspace(1, 1000, 11 * per_file).astype(int)
    names = [f"train_data_batch_{i}" for i in range(1, 11)] + ["val_data"]
    for i, name in enumerate(names):
        part = slice(i * per_file, (i + 1) * per_file)
        content = {"data": images[part], "labels": labels[part].tolist(), "mean": images[0] / 255}
        (directory / name).write_bytes(pickle.dumps(content, protocol=2 + i % 4))
    images, train = images.reshape(-1, 3, 32, 32), 10 * per_file
    return {
        "train": (images[:train], labels[:train] - 1),
        "test": (images[train:], labels[train:] - 1),
    }


def test_imagenet(tmp_path):
    written = write_imagenet(tmp_path / "raw" / "imagenet32")
    for split, (images, labels) in written.items():
        loaded = datasets.load(config(tmp_path, "imagenet", 32, 3), split)
        np.testing.assert_array_equal(loaded.images, images)
        np.testing.assert_array_equal(loaded.labels, labels)
        assert loaded.classes == 1000


def imagenet_file(tmp_path, content):
    directory = tmp_path / "raw" / "imagenet32"
    directory.mkdir(parents=True)
    (directory / "val_data").write_bytes(content)
    return config(tmp_path, "imagenet", 32, 3)


def test_imagenet_of_old_versions(tmp_path):
    """Keys as bytes, as Python 2's pickles are read, and NumPy 1's names of modules."""
    images = random_images(2, 3072)
    content = pickle.dumps({b"data": images, b"labels": np.array([1, 1000])}, protocol=2)
    assert b"numpy._core" in content
    content = content.replace(b"numpy._core", b"numpy.core")
    loaded = datasets.load(imagenet_file(tmp_path, content), "test")
    np.testing.assert_array_equal(loaded.images, images.reshape(2, 3, 32, 32))
    np.testing.assert_array_equal(loaded.labels, [0, 999])


@pytest.mark.parametrize("protocol", [0, 5])
def test_pickle_that_runs_code_is_refused(tmp_path, protocol):
    witness = tmp_path / "it ran"
    content = pickle.dumps({"data": Calls(os.mkdir, str(witness))}, protocol=protocol)
    pickle.loads(content)
    assert witness.exists()  # it does what it says where it may
    witness.rmdir()
    data = imagenet_file(tmp_path, content)
    refused(data, "test", "val_data", f"{os.mkdir.__module__}.mkdir")
    assert not witness.exists()


FITS = random_images(2, 3072)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ([1, 2], ["list"]),
        ({"data": FITS[:, :-1], "labels": [1, 2]}, ["data", "3072"]),
        ({"data": FITS / 255, "labels": [1, 2]}, ["data", "uint8"]),
        ({"data": FITS, "labels": [[1], [2, 3]]}, ["labels"]),
        ({"data": FITS, "labels": [0, 999]}, ["0 to 999", "1 to 1000"]),
    ],
)
def test_imagenet_malformed(tmp_path, content, parts):
    refused(imagenet_file(tmp_path, pickle.dumps(content)), "test", "imagenet", *parts)


def test_imagenet_damaged(tmp_path):
    data = imagenet_file(tmp_path, pickle.dumps({"data": FITS})[:-100])
    refused(data, "test", "val_data")
    refused(data, "train", "lacks train_data_batch_1", "image-net.org")


# ---------------------------------------------------------------- digits


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    data = config(tmp_path, "digits", 8, 1)
    train, test = datasets.load(data, "train"), datasets.load(data, "test")
    assert (len(train), len(test)) == (1437, 360)
    counts = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert np.all(np.abs(counts - 0.2) < 0.01)  # a fifth of every class
    images, labels = load_digits(return_X_y=True)
    expected = pairs(np.rint(images * 255 / 16).astype(np.uint8), labels)
    found = pairs(train.images, train.labels) + pairs(test.images, test.labels)
    assert sorted(found) == expected  # no image twice, none lost
    assert train.images.max() == 255
