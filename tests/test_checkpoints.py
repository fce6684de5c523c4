"""Checkpoints: the published files, our own, and everything that does not fit."""

import copy
import pickle

import golden
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

import losses
import models
from configs import common
from models.ema import EMA
from storage import checkpoints
from utils import UserError

OFFICIAL = sorted(path.name for path in golden.DIRECTORY.glob("official_*.pth"))


def fresh_state(entry):
    net = models.create_model(ConfigDict(entry["config"]))
    optimizer = losses.make_optimizer(list(net.parameters()), common.base("CIFAR10").optim)
    return checkpoints.TrainState(net, EMA(net.parameters(), 0.999), optimizer)


@pytest.fixture(scope="module")
def entry():
    return golden.manifest("qc")["train_steps"]


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_files_load(name, entry):
    state = fresh_state(entry)
    path = golden.DIRECTORY / name
    content = checkpoints.read(path)
    checkpoints.load_training(state, content, path, step_if_absent=600000)
    for n, parameter in state.model.named_parameters():
        if n in entry["param_sum"]:
            assert float(parameter.detach().double().sum()) == pytest.approx(
                entry["param_sum"][n], rel=1e-5, abs=1e-5
            )
    trainable = [n for n, p in state.model.named_parameters() if p.requires_grad]
    for n, shadow in zip(trainable, state.ema.shadow):
        assert float(shadow.double().sum()) == pytest.approx(
            entry["ema_sum"][n], rel=1e-5, abs=1e-5
        )
    assert state.ema.num_updates == entry["ema_num_updates"]
    assert state.step == content.get("step", 600000)
    moments = state.optimizer.state_dict()["state"]
    assert len(moments) == entry["n_shadow"]
    assert all(float(m["step"]) == entry["ema_num_updates"] for m in moments.values())
    assert state.optimizer.param_groups[0]["eps"] == 1e-8


def test_our_files_come_back_whole(tmp_path, entry):
    config = common.qc("u_ncsn", "CIFAR10")
    torch.manual_seed(0)
    state = fresh_state(entry)
    for p in state.model.parameters():
        p.grad = torch.randn_like(p)
    state.optimizer.step()
    state.ema.update()
    state.step, state.position = 17, 170
    checkpoints.save(tmp_path / "a.pth", state, config)

    torch.manual_seed(1)
    other = fresh_state(entry)
    checkpoints.load_training(other, checkpoints.read(tmp_path / "a.pth"), tmp_path / "a.pth")
    checkpoints.save(tmp_path / "b.pth", other, config)
    assert (other.step, other.position) == (17, 170)
    a, b = (torch.load(tmp_path / n, weights_only=True) for n in ("a.pth", "b.pth"))
    assert_equal(a, b)
    checkpoints.save(tmp_path / "c.pth", state, config)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "c.pth").read_bytes()


def assert_equal(a, b):
    """Equal to the last bit, through dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    elif torch.is_tensor(a):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_a_published_checkpoint_has_another_name(tmp_path):
    for content in (b"one", b"two", b"two"):
        (tmp_path / "checkpoint_1.pth").unlink(missing_ok=True)
        (tmp_path / "checkpoint_1.pth").write_bytes(content)
        checkpoints.publish(tmp_path / "checkpoint_1.pth", tmp_path / "checkpoint.pth")
        assert (tmp_path / "checkpoint.pth").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


class Evil:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def damaged(tmp_path, kind):
    """A file of the published format, damaged."""
    source = golden.DIRECTORY / OFFICIAL[0]
    path = tmp_path / f"{kind}.pth"
    content = torch.load(source, weights_only=False)
    names = list(content["model"])
    match kind:
        case "truncated":
            path.write_bytes(source.read_bytes()[:100_000])
            return path
        case "text":
            path.write_text("no checkpoint")
            return path
        case "empty":
            path.write_bytes(b"")
            return path
        case "pickle":
            path.write_bytes(pickle.dumps({"model": Evil()}))
            return path
        case "directory":
            path.mkdir()
            return path
        case "missing":
            return path
        case "code":
            content["model"]["extra"] = Evil()
        case "object":
            content["optimizer"]["param_groups"][0]["lr"] = np.array([1], dtype=object)
        case "list":
            content = [1, 2]
        case "no model":
            del content["model"]
        case "missing name":
            del content["model"][names[5]]
        case "unknown name":
            content["model"]["module.other.weight"] = torch.zeros(1)
        case "shape":
            content["model"][names[5]] = torch.zeros(3, 3)
        case "no tensor":
            content["model"][names[5]] = 7
        case "ema count":
            content["ema"]["shadow_params"].pop()
        case "ema shape":
            content["ema"]["shadow_params"][3] = torch.zeros(1)
        case "ema keys":
            content["ema"] = {}
        case "moments":
            content["optimizer"]["state"][7]["exp_avg"] = torch.zeros(1)
        case "optimizer":
            content["optimizer"] = {"state": {}}
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "does not exist"),
        ("directory", "is a directory"),
        ("truncated", "not a readable checkpoint"),
        ("text", "not a readable checkpoint"),
        ("empty", "not a readable checkpoint"),
        ("pickle", "not a readable checkpoint"),
        ("code", "not a readable checkpoint"),
        ("object", "not a readable checkpoint"),
        ("list", "holds no 'model'"),
        ("no model", "holds no 'model'"),
        ("missing name", "lacks all_modules"),
        ("unknown name", "holds the unknown other.weight"),
        ("shape", r"of shape \(3, 3\)"),
        ("no tensor", "the config's network has"),
        ("ema count", r"\d+ arrays where the model has"),
        ("ema shape", "array 3 of shape"),
        ("ema keys", "EMA"),
        ("moments", "has parameter 7 of shape"),
        ("optimizer", "not a state of Adam"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(tmp_path, capsys, entry, kind, said):
    path = damaged(tmp_path, kind)
    state = fresh_state(entry)
    with pytest.raises(UserError, match=said) as caught:
        checkpoints.load_training(state, checkpoints.read(path), path)
    assert path.name in str(caught.value)
    assert "code of the file ran" not in capsys.readouterr().out


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, entry):
    config = common.qc("u_ncsn", "CIFAR10")
    state = fresh_state(entry)
    path = tmp_path / "checkpoint.pth"
    checkpoints.save(path, state, config)
    before = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    changed = copy.copy(state)
    changed.step = 99
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, changed, config)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
