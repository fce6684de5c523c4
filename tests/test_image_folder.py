"""Folders of images: what is made of them, and the sentence for each way to be malformed."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from raw_data import config, random_images, refused

import datasets


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """A folder with classes `a` (2 images) and `b` (1), and in the test split `b` alone."""
    root = tmp_path / "raw"
    for i, name in enumerate(["train/b/x.png", "train/a/2.png", "train/a/10.png", "test/b/y.png"]):
        save(root / name, random_images(8, 8, 3, seed=i))
    return root


def test_folder(tmp_path, tree):
    (tree / "train" / ".DS_Store").write_text("passed over")
    (tree / "train" / "a" / ".hidden").write_text("passed over")
    data = config(tmp_path, "folder", 8, 3)
    train, test = datasets.load(data, "train"), datasets.load(data, "test")
    assert (train.classes, test.classes) == (2, 2)
    np.testing.assert_array_equal(train.labels, [0, 0, 1])
    np.testing.assert_array_equal(test.labels, [1])
    for image, seed in zip([*train.images, *test.images], [2, 1, 0, 3], strict=True):
        np.testing.assert_array_equal(image, random_images(8, 8, 3, seed=seed).transpose(2, 0, 1))


def test_folder_crops_and_resizes(tmp_path):
    """Of 40×16 pixels the middle 16×16 remain; stripes of one pixel become an even grey."""
    array = np.full((16, 40), 255, np.uint8)
    array[:, 12:28] = np.arange(16) % 2 * 200
    array[:, 20:28] = 200
    save(tmp_path / "raw" / "train" / "a" / "x.png", array)
    image = datasets.load(config(tmp_path, "folder", 4, 1), "train").images[0, 0]
    assert image.shape == (4, 4)
    np.testing.assert_allclose(image[:, 0], 100, atol=15)
    np.testing.assert_allclose(image[:, 3], 200, atol=15)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_folder_converts(tmp_path, mode, channels):
    original = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    path = tmp_path / "raw" / "train" / "a" / "x.tiff"
    path.parent.mkdir(parents=True)
    original.save(path)
    images = datasets.load(config(tmp_path, "folder", 8, channels), "train").images
    assert images.shape == (1, channels, 8, 8)
    assert images.min() == 255


def test_folder_that_changes_is_read_anew(tmp_path, tree):
    data = config(tmp_path, "folder", 8, 3)
    before = datasets.load(data, "train"), datasets.load(data, "test")
    path = tree / "train" / "a" / "2.png"
    changed = time_shifted_copy(path, random_images(8, 8, 3, seed=9))
    after = datasets.load(data, "train")
    assert not np.array_equal(before[0].images, after.images)
    np.testing.assert_array_equal(after.images[1], changed.transpose(2, 0, 1))
    save(tree / "train" / "aa" / "z.png", changed)  # a new class moves the numbers of others
    np.testing.assert_array_equal(before[1].labels, [1])
    np.testing.assert_array_equal(datasets.load(data, "test").labels, [2])


def time_shifted_copy(path, array):
    """Overwrite an image and make sure that its time of change differs."""
    old = path.stat().st_mtime_ns
    save(path, array)
    os.utime(path, ns=(old + 1, old + 1))
    return array


def test_folder_at_another_place_is_another_set(tmp_path, tree):
    first = datasets.load(config(tmp_path, "folder", 8, 3), "train")
    os.rename(tree, tmp_path / "other")
    save(tree / "train" / "a" / "2.png", random_images(8, 8, 3, seed=5))
    second = datasets.load(config(tmp_path, "folder", 8, 3, tmp_path / "other"), "train")
    np.testing.assert_array_equal(first.images, second.images)
    assert len(datasets.load(config(tmp_path, "folder", 8, 3), "train")) == 1


def test_folder_links_within_are_followed(tmp_path, tree):
    (tree / "train" / "a" / "link.png").symlink_to(tree / "train" / "b" / "x.png")
    assert len(datasets.load(config(tmp_path, "folder", 8, 3), "train")) == 4


def link_out(tree):
    save(tree.parent / "secret.png", random_images(8, 8, 3))
    (tree / "train" / "a" / "link.png").symlink_to("../../../secret.png")


def link_class_out(tree):
    save(tree.parent / "raw2" / "x.png", random_images(8, 8, 3))  # a name that begins alike
    (tree / "train" / "c").symlink_to(tree.parent / "raw2")


def link_split_out(tree):
    os.rename(tree / "train", tree.parent / "elsewhere")
    (tree / "train").symlink_to(tree.parent / "elsewhere")


def broken_link(tree):
    (tree / "train" / "a" / "link.png").symlink_to("nowhere.png")


def image_beside_classes(tree):
    save(tree / "train" / "x.png", random_images(8, 8, 3))


def directory_among_images(tree):
    (tree / "train" / "a" / "more").mkdir()


def empty_class(tree):
    (tree / "train" / "c").mkdir()


def text_file(tree):
    (tree / "train" / "a" / "notes.txt").write_text("hello")


def cut_image(tree):
    path = tree / "train" / "a" / "2.png"
    path.write_bytes(path.read_bytes()[:150])


def postscript(tree):
    Image.new("RGB", (8, 8)).save(tree / "train" / "a" / "x.eps")


def deep_image(tree):
    save(tree / "train" / "a" / "deep.png", np.full((8, 8), 40000, np.uint16))


def claim_size(path, width, height):
    """A PNG of a few bytes whose header claims so many pixels."""
    save(path, random_images(8, 8))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def bomb(tree):
    claim_size(tree / "train" / "a" / "bomb.png", 11_000, 11_000)  # PIL alone would only warn


def larger_bomb(tree):
    claim_size(tree / "train" / "a" / "bomb.png", 2**30, 2**30)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (link_out, ["link.png", "secret.png", "outside"]),
        (link_class_out, ["train/c", "raw2", "outside"]),
        (link_split_out, ["raw/train", "elsewhere", "outside"]),
        (broken_link, ["link.png", "no file"]),
        (image_beside_classes, ["train/x.png", "train/<class>/<image>"]),
        (directory_among_images, ["train/a/more", "no file"]),
        (empty_class, ["train/c", "no images"]),
        (text_file, ["notes.txt", "cannot be read", "PNG"]),
        (cut_image, ["2.png", "cannot be read"]),
        (postscript, ["x.eps", "cannot identify"]),
        (deep_image, ["deep.png", "more than 8 bits"]),
        (bomb, ["bomb.png", "11000×11000", "too many"]),
        (larger_bomb, ["bomb.png", "decompression bomb"]),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_folder_malformed(tmp_path, tree, spoil, parts):
    spoil(tree)
    refused(config(tmp_path, "folder", 8, 3), "train", tree, *parts)


def test_folder_without_images(tmp_path, tree):
    data = config(tmp_path, "folder", 8, 3)
    (tree / "test" / "b" / "y.png").unlink()
    refused(data, "test", tree / "test", "holds no images")
    (tree / "test" / "b").rmdir()
    refused(data, "test", tree / "test", "holds no images")
    (tree / "test").rmdir()
    refused(data, "test", tree / "test", "is no directory", "train/<class>/<image>", "data.root")


def test_folder_class_only_in_test(tmp_path, tree):
    save(tree / "test" / "new" / "x.png", random_images(8, 8, 3))
    refused(config(tmp_path, "folder", 8, 3), "test", "'new'", "a, b")


@pytest.mark.parametrize(
    ("size", "channels", "part"), [(0, 3, "data.image_size is 0"), (8, 2, "data.num_channels is 2")]
)
def test_folder_shape(tmp_path, tree, size, channels, part):
    refused(config(tmp_path, "folder", size, channels), "train", part)
