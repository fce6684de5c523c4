"""Folders of images: what is made of them, and the sentence for each way to be malformed."""

import json
import os

import numpy as np
import pytest
import tiny
from PIL import Image
from raw_data import config, random_images, refused

import datasets
import run_lib
from readers import folder
from storage import checkpoints
from utils import UserError


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
    for name in (".DS_Store", "a/._2.png", "a/Thumbs.db", "b/desktop.ini"):
        (tree / "train" / name).write_text("passed over")
    data = config(tmp_path, "folder", 8, 3)
    train, test = datasets.load(data, "train"), datasets.load(data, "test")
    assert train.class_names == test.class_names == ("a", "b")
    np.testing.assert_array_equal(train.labels, [0, 0, 1])
    np.testing.assert_array_equal(test.labels, [1])
    for image, seed in zip([*train.images, *test.images], [2, 1, 0, 3], strict=True):
        np.testing.assert_array_equal(image, random_images(8, 8, 3, seed=seed).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 3), ("L", 3), ("P", 1), ("RGB", 1), ("RGBA", 3), ("CMYK", 3)]
)
def test_folder_converts(tmp_path, mode, channels):
    original = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    path = tmp_path / "raw" / "train" / "a" / "x.tiff"
    path.parent.mkdir(parents=True)
    original.save(path)
    images = datasets.load(config(tmp_path, "folder", 8, channels), "train").images
    assert images.shape == (1, channels, 8, 8)
    assert images.min() == 255


def test_folder_links_out_are_followed(tmp_path, tree):
    """Of an image, a class and a split."""
    save(tmp_path / "elsewhere" / "x.png", random_images(8, 8, 3, seed=7))
    (tree / "train" / "a" / "link.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (tree / "train" / "c").symlink_to(tmp_path / "elsewhere")
    os.rename(tree / "train", tmp_path / "moved")
    (tree / "train").symlink_to(tmp_path / "moved")
    train = datasets.load(config(tmp_path, "folder", 8, 3), "train")
    assert (train.class_names, train.labels.tolist()) == (("a", "b", "c"), [0, 0, 0, 1, 2])


def test_folder_orders_numbers_as_numbers(tmp_path):
    for name in ("0", "2", "10"):
        save(tmp_path / "raw" / "train" / name / "x.png", random_images(8, 8, 3, seed=int(name)))
    data = config(tmp_path, "folder", 8, 3)
    train = datasets.load(data, "train")
    assert train.class_names == ("0", "2", "10")
    expected = random_images(8, 8, 3, seed=10).transpose(2, 0, 1)
    np.testing.assert_array_equal(train.images[2], expected)
    save(tmp_path / "raw" / "train" / "x" / "x.png", random_images(8, 8, 3))
    assert datasets.load(data, "train").class_names == ("0", "10", "2", "x")


def test_folder_of_photographs_lies_as_a_viewer_shows_it(tmp_path):
    """EXIF's orientation 6 means a quarter turn clockwise, before the image is cropped."""
    array = np.zeros((8, 24, 3), np.uint8)
    array[:, 8:16, 0] = np.arange(8)[:, None] * 30
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "raw" / "train" / "a" / "x.png", array, exif=exif)
    image = datasets.load(config(tmp_path, "folder", 8, 3), "train").images[0]
    np.testing.assert_array_equal(image, np.rot90(array[:, 8:16], -1).transpose(2, 0, 1))


def transparent(mode):
    """8×8 pixels of one dark colour, the left half transparent, the right one opaque."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255
    colour = Image.new("RGBA", (8, 8), (40, 40, 40, 255))
    colour.putalpha(Image.fromarray(alpha))
    if mode != "P":
        return colour.convert(mode)
    palette = Image.fromarray(alpha // 255).convert("P")
    palette.putpalette([0, 0, 0, 40, 40, 40])
    palette.info["transparency"] = 0
    return palette


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1), ("P", 3)])
def test_folder_transparency_is_over_white(tmp_path, mode, channels, monkeypatch):
    said = []
    monkeypatch.setattr(folder.log, "warning", said.append)
    folder._say_transparent.cache_clear()
    directory = tmp_path / "raw" / "train" / "a"
    directory.mkdir(parents=True)
    for number in range(3):
        transparent(mode).save(directory / f"{number}.png")
    images = datasets.load(config(tmp_path, "folder", 8, channels), "train").images
    assert (images[..., :4] == 255).all()
    assert (images[..., 4:] == 40).all()
    assert len(said) == 1


def test_folder_that_changes_is_read_anew(tmp_path, tree):
    data = config(tmp_path, "folder", 8, 3)
    before = datasets.load(data, "train"), datasets.load(data, "test")
    path = tree / "train" / "a" / "2.png"
    changed, old = random_images(8, 8, 3, seed=9), path.stat().st_mtime_ns
    save(path, changed)
    os.utime(path, ns=(old + 1, old + 1))
    after = datasets.load(data, "train")
    assert not np.array_equal(before[0].images, after.images)
    np.testing.assert_array_equal(after.images[1], changed.transpose(2, 0, 1))
    save(tree / "train" / "aa" / "z.png", changed)  # a new class moves the numbers of others
    np.testing.assert_array_equal(before[1].labels, [1])
    np.testing.assert_array_equal(datasets.load(data, "test").labels, [2])


# ---------------------------------------------------------------- which data a run has


def identity(tmp_path, root=None):
    return datasets.load(config(tmp_path, "folder", 8, 3, root), "train").identity


def test_moved_and_touched_folders_are_the_same_data(tmp_path, tree):
    before = identity(tmp_path)
    assert before["classes"] == ["a", "b"]
    assert before["counts"] == [2, 1]
    os.utime(tree / "train" / "a" / "2.png", (0, 0))
    os.rename(tree, tmp_path / "other")
    assert json.loads(json.dumps(identity(tmp_path, tmp_path / "other"))) == before


def labelled_run(tmp_path, workdir="run", restore=None, **changes):
    """Train two steps on the folder, with its labels."""
    fields = {"training__n_iters": 2, "training__batch_size": 2, "model__num_classes": 2}
    settings = tiny.config(tmp_path / "cache", **fields | changes)
    settings.data.update(dataset="folder", root=str(tmp_path / "raw"), num_channels=3)
    return run_lib.train(settings, workdir, restore=restore)


def test_a_run_refuses_other_data(tmp_path, tree, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labelled_run(tmp_path)
    path = tmp_path / "results/run/checkpoints/checkpoint.pth"
    assert checkpoints.read(path)["data"] == identity(tmp_path)
    labelled_run(tmp_path, training__n_iters=3)
    os.rename(tree / "train/a/2.png", tree / "train/a/3.png")
    with pytest.raises(UserError, match="hash"):
        labelled_run(tmp_path, training__n_iters=4)
    save(tree / "train/a/4.png", random_images(8, 8, 3))
    with pytest.raises(UserError, match="counts"):
        labelled_run(tmp_path, training__n_iters=4)
    # Its weights may begin another run, unless classes have other names.
    labelled_run(tmp_path, "second", path, training__n_iters=4)
    os.rename(tree / "train/a", tree / "train/z")
    with pytest.raises(UserError, match="classes"):
        labelled_run(tmp_path, "third", path, training__n_iters=4)


SPOILED = {
    "circle": (lambda a: (a.parent / "c").symlink_to(".."), "no file"),
    "broken link": (lambda a: (a / "x.png").symlink_to("nowhere.png"), "no file"),
    "no class": (lambda a: save(a.parent / "x.png", random_images(8, 8, 3)), "<class>/<image>"),
    "a directory": (lambda a: (a / "more").mkdir(), "no file"),
    "empty class": (lambda a: (a.parent / "c").mkdir(), "no images"),
    "text": (lambda a: (a / "notes.txt").write_text("hello"), "cannot be read"),
    "cut": (lambda a: (a / "2.png").write_bytes((a / "2.png").read_bytes()[:150]), "2.png"),
    "PostScript": (lambda a: Image.new("RGB", (8, 8)).save(a / "x.eps"), "x.eps"),
    "16 bits": (lambda a: save(a / "x.png", np.full((8, 8), 40000, np.uint16)), "8 bits"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_folder_malformed(tmp_path, tree, kind):
    spoil, named = SPOILED[kind]
    spoil(tree / "train" / "a")
    refused(config(tmp_path, "folder", 8, 3), "train", tree, named)


def test_a_class_only_in_test(tmp_path, tree):
    save(tree / "test" / "new" / "x.png", random_images(8, 8, 3))
    refused(config(tmp_path, "folder", 8, 3), "test", "'new'", "a, b")
