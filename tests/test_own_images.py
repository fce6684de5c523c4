"""Folders of one's own: what is held out, and a configuration that runs."""

import functools
import json
import math
import os
import re
import runpy

import numpy as np
import pytest
from commands import TINY, command
from PIL import Image, ImageDraw

import datasets
from configs import common
from metrics import encoding
from metrics.kid import kernel_inception_distance
from readers.folder import is_held_out
from scripts import own_images as images
from utils import UserError


def folder(root, count=6, size=(20, 17)):
    """Images of one grey each, from black to white."""
    for number in range(count):
        path = root / "train" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((*size[::-1], 3), 255 * number // (count - 1), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def test_the_configuration_runs(here, capsys):
    path = images.describe(folder(here / "grey"), target="own.py", holdout=0.0)
    said = capsys.readouterr().out
    assert "6 training images, and 0 that are held out" in said
    assert "modelled: 3×16×16" in said
    assert f"σ_max: {math.sqrt(3 * 16 * 16):.3g}" in said  # black and white
    assert re.search(
        r"training: [\d,]+ steps of \d+ images on .*FLOP in all; memory [\d.]+.iB", said
    )
    few = [field for field in TINY if "image_size" not in field]
    few += ["--config.training.n_iters=1", "--config.training.snapshot_sampling=False", "--bs=2"]
    done = command(f"main.py --config {path} --workdir run", here, few)
    assert done.returncode == 0, done.stderr
    assert (here / "results/run/checkpoints/checkpoint.pth").exists()
    with pytest.raises(UserError, match=r"own\.py exists"):
        images.describe(here / "grey", target="own.py")


def test_mistakes_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match="expected a multiple of 8"):
        images.describe(folder(tmp_path / "a", size=(7, 7)))
    with pytest.raises(UserError, match="is no directory"):
        images.describe(tmp_path / "none")


def test_a_damaged_file_that_is_held_out_is_found(tmp_path):
    names = (f"x{number}.png" for number in range(100))
    name = next(name for name in names if is_held_out(name, 0.1))
    (folder(tmp_path / "a") / "train" / name).write_text("no")
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        images.describe(tmp_path / "a", target=tmp_path / "own.py")


def test_a_single_image_that_is_held_out_is_said_to_be(tmp_path):
    names = (f"{number}.png" for number in range(100))
    name = next(name for name in names if is_held_out(name, 0.1))
    Image.new("RGB", (16, 16)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"held-out share"):
        images.describe(tmp_path, target=tmp_path / "own.py")


# ---------------------------------------------------------------- what is held out


def shapes(root, count=160, size=64, classes=False):
    """Red or blue discs and squares on light grounds; with `classes` a directory for each shape."""
    rng = np.random.default_rng(0)
    for number in range(count):
        shape = ("disc", "square")[number % 2]
        picture = Image.new("RGB", (size, size), tuple(rng.integers(200, 256, 3).tolist()))
        x, y, radius = (rng.uniform(*ends) * size for ends in ((0.4, 0.6), (0.4, 0.6), (0.2, 0.35)))
        draw, box = ImageDraw.Draw(picture), [x - radius, y - radius, x + radius, y + radius]
        paint = draw.ellipse if shape == "disc" else draw.rectangle
        paint(box, fill=((220, 40, 40), (40, 60, 210))[rng.integers(2)])
        path = root / (shape if classes else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return root


def data(root, cache, holdout):
    config = common.base("folder").data
    config.update(root=str(root), cache=str(cache), image_size=8, holdout=holdout)
    return config


def pixels(split):
    return {image.tobytes() for image in split.images}


def test_held_out_images_stay_so():
    names = [f"{number}.png" for number in range(2000)]
    held_out = [name for name in names if is_held_out(name, 0.1)]
    assert 150 < len(held_out) < 250
    assert not any(is_held_out(name, 0.0) for name in names)
    assert {*held_out} < {name for name in names if is_held_out(name, 0.2)}


@pytest.mark.parametrize(("classes", "below"), [(False, ""), (True, "train")])
def test_every_image_is_in_one_split(tmp_path, classes, below):
    shapes(tmp_path / "a" / below, 40, 8, classes)
    whole = datasets.load(data(tmp_path / "a", tmp_path / "cache", 0.0), "train")
    settings = data(tmp_path / "a", tmp_path / "cache", 0.25)
    train, test = datasets.load(settings, "train"), datasets.load(settings, "test")
    assert pixels(train) | pixels(test) == pixels(whole)
    assert 0 < len(test) < 20
    assert len(train) + len(test) == 40
    assert train.class_names == test.class_names == (("disc", "square") if classes else ())
    of_label = dict(zip((image.tobytes() for image in whole.images), whole.labels, strict=True))
    assert [of_label[image.tobytes()] for image in test.images] == test.labels.tolist()
    os.rename(tmp_path / "a", tmp_path / "b")
    moved = datasets.load(data(tmp_path / "b", tmp_path / "cache", 0.25), "test")
    assert moved.identity == test.identity


def test_a_test_folder_is_all_that_is_held_out(tmp_path):
    shapes(tmp_path / "train", 6, 8)
    shapes(tmp_path / "test", 2, 8)
    assert len(datasets.load(data(tmp_path, tmp_path / "cache", 0.0), "test")) == 2
    with pytest.raises(UserError, match="holdout"):
        datasets.load(data(tmp_path, tmp_path / "cache", 0.1), "train")


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("count", [5, 160, 60000])
def test_sizes_follow_the_images(count, on_cpu):
    counts = {"images": count, "held_out": count // 10, "holdout": 0.1, "on_cpu": on_cpu}
    config = common.own_images("x", 64, 3, **counts, sigma_max=50.0)
    training = config.training
    assert config.optim.warmup < training.n_iters < 450001
    assert 1 <= training.snapshot_freq_for_preemption <= training.snapshot_freq < training.n_iters
    assert config.eval.num_samples == min(count, 50000)
    assert config.eval.kid_subset_size == max(2, min(count // 20, 1000))


# ---------------------------------------------------------------- as a user would


class Blocks:
    """Features of 4×4 blocks of pixels, in place of a network that would have to be fetched."""

    name, pool_width, logit_width = "blocks", 48, 0

    def __call__(self, pictures):
        x = pictures.reshape(len(pictures), 4, -1, 4, pictures.shape[2] // 4, 3).mean((2, 4)) / 255
        return x.reshape(len(x), 48).astype(np.float32), np.zeros((len(x), 0), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "steps"), [(False, 500), (True, 5)])
def test_from_pictures_to_kid(tmp_path, monkeypatch, capsys, classes, steps):
    """160 pictures of 64×64, modelled at 16×16 to be fast; the commands are those it prints.

    After 500 steps the KID is below that of noise.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(encoding.EXTRACTORS, "inception", lambda config: Blocks())
    shapes(tmp_path / "mine", classes=classes)
    path = images.describe(tmp_path / "mine", size=16, target="own.py")
    run = functools.partial(command, cwd=tmp_path, extra=[f"--config.training.n_iters={steps}"])
    said = capsys.readouterr().out
    for line in re.findall(r"^  python (.*)", said, re.MULTILINE)[-3:]:
        done = run(line)
        assert done.returncode == 0, done.stdout + done.stderr
    name = "mine_classes" if classes else "mine"
    recorded = json.loads((tmp_path / f"results/{name}/metrics.json").read_text())
    (found,) = (each for name, each in recorded.items() if name.startswith("kid"))
    assert found["settings"]["generated"] + found["settings"]["real"] == 160
    config = runpy.run_path(path)["get_config"]()
    real = datasets.load(config.data, "test").images.transpose(0, 2, 3, 1)
    noise = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    sets = (Blocks()(pictures)[0] for pictures in (real, noise))
    of_noise = kernel_inception_distance(*sets, config.eval.kid_subset_size)["kid"]
    assert (found["kid"] < 0.3 * of_noise) == (steps == 500)
