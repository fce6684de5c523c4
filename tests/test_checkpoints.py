"""Checkpoints: the published files, our own, and everything that does not fit."""

import os
import pickle

import golden
import pytest
import torch
from ml_collections import ConfigDict
from raw_data import Calls

import losses
import models
from configs import common
from storage import checkpoints
from storage.ema import EMA
from storage.workdir import Workdir
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


def test_a_run_without_a_snapshot_names_its_resume_point(tmp_path):
    place = Workdir(str(tmp_path))
    with pytest.raises(UserError) as error:
        checkpoints.read(place.checkpoint())
    assert "--restore" not in str(error.value)
    place.resume_point.parent.mkdir()
    place.resume_point.touch()
    with pytest.raises(UserError) as error:
        checkpoints.read(place.checkpoint())
    assert f"--restore {place.resume_point}" in str(error.value)


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


def published():
    """The content of a published file, and the names of its network's tensors."""
    content = checkpoints.read(golden.DIRECTORY / OFFICIAL[0])
    return content, list(content["model"])


def renamed(prefix):
    content, names = published()
    return {prefix + name.removeprefix("module."): content["model"][name] for name in names}


@pytest.mark.parametrize(
    ("prefix", "layout"),
    [("", "bare"), ("module.module.", "state_dict"), ("module._orig_mod.", "model")],
)
def test_networks_of_other_codes_load(tmp_path, entry, prefix, layout):
    tensors = renamed(prefix)
    content = {"bare": tensors, "state_dict": {"state_dict": tensors, "epoch": 3}}
    torch.save(content.get(layout, {"model": tensors}), tmp_path / "a.pth")
    state = fresh_state(entry)
    content = checkpoints.read(tmp_path / "a.pth")
    checkpoints.load_training(state, content, tmp_path / "a.pth", step_if_absent=5)
    for name, tensor in renamed("").items():
        assert torch.equal(state.model.state_dict()[name], tensor)
    assert state.step == 5
    assert_equal(
        state.ema.shadow, [p.detach() for p in state.model.parameters() if p.requires_grad]
    )


def files(tmp_path, kind):
    """A file that cannot be read."""
    whole = (golden.DIRECTORY / OFFICIAL[0]).read_bytes()
    path = tmp_path / f"{kind}.pth"
    match kind:
        case "missing":
            pass
        case "directory":
            path.mkdir()
        case "truncated":
            path.write_bytes(whole[:100_000])
        case "checksum":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        case "empty":
            path.touch()
        case "web page":
            path.write_text("<html>Seite nicht gefunden: für immer</html>")
        case "no PyTorch checkpoint":
            path.write_bytes(bytes(range(100)))
        case "Flax":  # msgpack: {"params": {}}
            path.write_bytes(b"\x81\xa6params\x80")
        case "mkdir":  # code that a pickle names
            path.write_bytes(pickle.dumps({"model": Calls(os.mkdir, str(tmp_path / "ran"))}, 2))
        case "Linear":
            torch.save(torch.nn.Linear(2, 2), path)
        case "list":
            torch.save([1, 2], path)
        case "optimizer":  # what it holds in place of a model
            torch.save({"optimizer": {}}, path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "directory", "truncated", "checksum", "mkdir", "Flax", "Linear"),
        *("empty", "web page", "no PyTorch checkpoint", "list", "optimizer"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_is_no_checkpoint_gets_a_sentence(tmp_path, kind):
    path = files(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        checkpoints.read(path)
    said = str(caught.value).replace(str(tmp_path), "").replace(f"{kind}.pth", "FILE", 1)
    assert "FILE" in said
    assert kind.replace("missing", "does not exist") in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (["model", "{name}"], None, ["{name}", "missing"]),
        (["model", "module.other"], torch.zeros(1), ["other", "(1,)", "missing"]),
        (["model", "{name}"], torch.zeros(3, 3), ["{name}", "(3, 3)"]),
        (["model", "{name}"], torch.zeros(8, dtype=torch.long), ["{name}", "whole"]),
        (["model", "{name}"], "nan", ["{name}", "NaN"]),
        (["ema", "shadow_params", -1], None, ["EMA"]),
        (["ema", "shadow_params", 3], torch.zeros(1), ["EMA", "3"]),
        (["ema", "shadow_params", 3], "nan", ["EMA", "3", "NaN"]),
        (["ema"], {}, ["EMA"]),
        (["optimizer", "state", 7, "exp_avg"], torch.zeros(1), ["optimiser", "7"]),
        (["optimizer"], {"state": {}}, ["optimiser"]),
        (["step"], 1.5, ["step", "1.5"]),
    ],
)
def test_what_does_not_fit_is_named(entry, place, value, named):
    content, names = published()
    name = names[5]
    *way, last = [part.format(name=name) if isinstance(part, str) else part for part in place]
    parent = content
    for part in way:
        parent = parent[part]
    if value is None:
        del parent[last]
    else:
        nan = isinstance(value, str)
        parent[last] = torch.full_like(parent[last], float("nan")) if nan else value
    with pytest.raises(UserError) as caught:
        checkpoints.load_training(fresh_state(entry), content, "some/FILE.pth")
    for text in ("FILE.pth", *named):
        assert text.format(name=name.removeprefix("module.")) in str(caught.value)


def test_a_missing_checkpoint_names_those_that_are_there(tmp_path):
    folder = tmp_path / "W" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "checkpoint_10.pth").touch()
    (folder / "checkpoint_9.pth").touch()
    for path, said in (
        (folder / "checkpoint.pth", "holds checkpoint_9.pth, checkpoint_10.pth.*published_weights"),
        (tmp_path / "V/checkpoints/checkpoint.pth", "V does not exist; .* holds W"),
    ):
        with pytest.raises(UserError, match=said):
            checkpoints.read(path)


def test_a_file_of_ours_says_how_it_was_made(tmp_path, entry, monkeypatch):
    config = common.qc("u_ncsn", "CIFAR10")
    checkpoints.save(tmp_path / "a.pth", fresh_state(entry), config)
    assert checkpoints.read_config(tmp_path / "a.pth")["model"]["nf"] == 128
    assert checkpoints.read_config(golden.DIRECTORY / OFFICIAL[0]) is None
    for foreign in ({"lr": 0.1}, "lr: 0.1", "[]"):
        torch.save({"model": {}, "config": foreign}, tmp_path / "b.pth")
        assert checkpoints.read_config(tmp_path / "b.pth") is None
