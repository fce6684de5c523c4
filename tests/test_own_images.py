"""Folders of one's own: noise levels as the paper chooses them, and a configuration that runs."""

import math

import numpy as np
import pytest
from commands import TINY, command
from PIL import Image

from configs import common
from scripts import own_images as images
from utils import UserError


# Song and Ermon (2020), table of hyper-parameters: D, σ_1, L, and ε of T = 5 steps at σ_L = 0.01.
@pytest.mark.parametrize(
    ("size", "sigma_max", "levels", "epsilon"), [(32, 50, 232, 6.2e-6), (64, 90, 500, 3.3e-6)]
)
def test_the_papers_numbers(size, sigma_max, levels, epsilon):
    """The paper rounds what it takes."""
    ratio = images.ratio_of_levels(3 * size**2)
    assert images.number_of_levels(sigma_max, ratio) == pytest.approx(levels, rel=0.06)
    own = (sigma_max / 0.01) ** (1 / (levels - 1))
    assert images.step_size(own) * 0.01**2 == pytest.approx(epsilon, rel=0.02)


def folder(root, count=6, size=(20, 17)):
    """Images of one grey each, from black to white."""
    for number in range(count):
        path = root / "train" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((*size[::-1], 3), 255 * number // (count - 1), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def test_the_configuration_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_images = common.own_images

    def small(*arguments, **settings):
        config = own_images(*arguments, **settings)
        config.model.update(nf=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
        return config

    monkeypatch.setattr(common, "own_images", small)
    path = images.describe(folder(tmp_path / "grey"), target="own.py")
    said = capsys.readouterr().out
    largest = math.sqrt(3 * 16 * 16)  # black and white
    assert f"largest distance of two of 6 images in [0, 1]: {largest:.4g}" in said
    assert "6 training images in 1 classes" in said
    assert "20×17 (6); channels: 3" in said
    assert "modelled: 3×16×16" in said
    assert "σ_max 27.7" in said
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 7
    few = [field for field in TINY if "image_size" not in field]
    few += ["--config.training.n_iters=1", f"--config.data.cache={tmp_path}/cache", "--bs=2"]
    few += ["--config.training.snapshot_sampling=False"]
    done = command(f"main.py --config {path} --workdir run", tmp_path, few)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/run/checkpoints/checkpoint.pth").exists()
    with pytest.raises(UserError, match=r"own\.py exists"):
        images.describe(tmp_path / "grey", target="own.py")


def test_mistakes_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match="expected a multiple of 8"):
        images.describe(folder(tmp_path / "a", size=(7, 7)))
    with pytest.raises(UserError, match="is no directory"):
        images.describe(tmp_path / "none")
    (folder(tmp_path / "b") / "train" / "x.png").write_text("no")
    with pytest.raises(UserError, match=r"x\.png cannot be read"):
        images.describe(tmp_path / "b")
