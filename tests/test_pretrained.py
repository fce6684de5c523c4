"""The model that ships, and how it was made from a run."""

import pathlib

import tiny
import torch
from commands import command

import run_lib
import sampling
import sde_lib
from configs.fashion_mnist import score as fashion_mnist
from models.trained import load_score
from storage.workdir import Workdir

SHIPPED = tiny.ROOT / "pretrained/fashion_mnist.pth"
CPU = torch.device("cpu")


def parameters(config, path):
    score = load_score(config, path, CPU).score
    return torch.cat([p.flatten() for p in score.net.parameters()])


def test_a_release_holds_the_averages_in_half_precision(tmp_path, monkeypatch):
    """As every command loads it, in less than a quarter of the checkpoint's bytes."""
    monkeypatch.chdir(tmp_path)
    config = tiny.config("cache", training__n_iters=4)
    run_lib.train(config, "W")
    done = command("scripts/release.py --workdir W --out out/W.pth", ".", tiny.arguments("cache"))
    assert done.returncode == 0, done.stderr
    checkpoint = Workdir("W").checkpoint(None)
    averages = parameters(config, checkpoint)
    assert torch.equal(parameters(config, "out/W.pth"), averages.half().float())
    assert not torch.equal(averages, averages.half().float())
    assert pathlib.Path("out/W.pth").stat().st_size < checkpoint.stat().st_size / 4


def test_the_shipped_model_draws_clothes():
    """Dark around a bright middle, as the training images are, whose mean is 0.286."""
    config = fashion_mnist.get_config()
    config.sampling.method, config.sampling.steps = "dpmpp_2m_sde", 16
    assert SHIPPED.stat().st_size < 6 * 2**20
    sde = sde_lib.from_config(config)
    score = load_score(config, SHIPPED, CPU).score
    torch.manual_seed(0)
    x, _ = sampling.from_config(config.sampling, sde)(score, torch.randn(8, 1, 28, 28))
    x = x.clamp(0, 1)
    assert 0.15 < x.mean() < 0.45
    corners = x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < 0.1 < x[:, :, 10:18, 10:18].mean()
