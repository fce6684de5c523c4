"""Checkpoints to safetensors and back: nothing is lost."""

import golden
import pytest
import tiny
import torch

import run_lib
from storage import checkpoints, convert
from utils import UserError


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("name", ["qc", "score_sde", "ours"])
def test_there_and_back(tmp_path, monkeypatch, name):
    library = pytest.importorskip("safetensors.torch")
    path = golden.DIRECTORY / f"official_{name}_checkpoint.pth"
    if name == "ours":
        monkeypatch.chdir(tmp_path)
        run_lib.train(tiny.config(tmp_path / "cache", training__n_iters=1), "run")
        path = tmp_path / "results/run/checkpoints/checkpoint.pth"
    there, back = tmp_path / "x.safetensors", tmp_path / "back.pth"
    convert.convert(path, there)
    before = checkpoints.read(path)
    weights = library.load_file(there)
    for key, tensor in before["model"].items():
        assert torch.equal(weights[f"model.{key}"], tensor)
    convert.convert(there, back)
    assert equal(checkpoints.read(back), before)


def test_a_file_of_another_make(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    library.save_file({"weight": torch.ones(3)}, tmp_path / "x.safetensors")
    convert.convert(tmp_path / "x.safetensors", tmp_path / "x.pth")
    assert equal(checkpoints.read(tmp_path / "x.pth"), {"model": {"weight": torch.ones(3)}})
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        convert.convert(tmp_path / "x.safetensors", tmp_path / "y.pth")
    assert not (tmp_path / "y.pth").exists()
