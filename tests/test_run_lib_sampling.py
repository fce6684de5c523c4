"""Sampling in divisions: exact counts, reproducible bytes, resumption, refusals."""

import io
import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from commands import command
from tqdm import tqdm

import domains
import run_lib
import run_lib_sampling
from metrics.sample_sets import numbered_rounds
from run_lib_sampling import sample
from samplers.progress import RoundProgress
from storage import checkpoints
from storage.files import load_npz
from storage.provenance import code_version
from storage.workdir import Workdir
from utils import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory with a trained run called "run" under results/, and its data cache."""
    here = tmp_path_factory.mktemp("sampling")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        run_lib.train(tiny.config(here / "cache"), "run")
    return here


@pytest.fixture
def config(run, monkeypatch):
    """The tiny configuration, in the trained run's directory; samples are removed afterwards."""
    monkeypatch.chdir(run)
    yield tiny.config(run / "cache")
    for name in ("eval_sampling", "eval_sampling_ode"):
        shutil.rmtree(run / "results/run" / name, ignore_errors=True)


def files(name="eval_sampling"):
    root = Workdir("run").root / name
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.npz")}


def test_a_thousand_samples_in_seven_divisions(config):
    config.eval.num_samples, config.eval.num_divisions, config.eval.batch_size = 1000, 7, 64
    sample(config, "run")
    arrays = [
        load_npz(path, "samples")["samples"]
        for path in Workdir("run").root.glob("eval_sampling/*/samples_*.npz")
    ]
    assert sum(len(a) for a in arrays) == 1000
    assert len(np.unique(np.concatenate(arrays), axis=0)) == 1000
    assert {a.shape[1:] for a in arrays} == {(8, 8, 1)}
    assert {a.dtype for a in arrays} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("method", ["pc", "ode"])
def test_a_division_drawn_again_has_the_same_bytes(config, method):
    config.sampling.method = method
    name = "eval_sampling" if method == "pc" else "eval_sampling_ode"
    sample(config, "run")
    before = files(name)
    assert len(before) == 3
    removed = Workdir("run").division(1, name.removeprefix("eval_sampling")) / "samples_0.npz"
    removed.unlink()
    assert removed.with_suffix(".png").exists()
    sample(config, "run", division_idx=1)
    assert files(name) == before


def test_whole_rounds_are_skipped_and_damaged_ones_drawn_again(config, capsys):
    sample(config, "run", division_idx=0)
    path = Workdir("run").division(0, "") / "samples_0.npz"
    whole, stamp = path.read_bytes(), path.stat().st_mtime_ns
    sample(config, "run", division_idx=0)
    assert path.stat().st_mtime_ns == stamp
    config.sampling.batch_size += 1  # it is that of the pictures during training
    sample(config, "run", division_idx=0)
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(whole[:-100])
    sample(config, "run", division_idx=0)
    assert "Making it again" in capsys.readouterr().out
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sampling.snr", 0.1, "sampling"),
        ("eval.num_samples", 27, "samples"),
        ("compute.precision", "bf16", "precision"),
        ("eval.checkpoint_idx", 1, "checkpoint_step=.*weights"),
    ],
)
def test_samples_of_other_settings_are_not_mixed(config, field, value, said):
    sample(config, "run", division_idx=0)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=said):
        sample(config, "run", division_idx=0)


@pytest.mark.parametrize("division", [None, 0])
def test_all_files_are_checked_before_a_sample_is_drawn(config, capsys, division):
    sample(config, "run", division_idx=1)
    before, _ = files(), capsys.readouterr()
    config.eval.checkpoint_idx = 1
    with pytest.raises(UserError, match="checkpoint_step=8"):
        sample(config, "run", division_idx=division)
    assert files() == before
    assert "img" not in capsys.readouterr().err  # no bar


def test_every_file_says_what_it_was_made_from(config):
    sample(config, "run", division_idx=0)
    content = load_npz(Workdir("run").division(0, "") / "samples_0.npz", "meta", "code")
    checkpoint = checkpoints.read(Workdir("run").checkpoint())
    assert str(content["code"]) == checkpoint["code"] == code_version()
    meta = json.loads(str(content["meta"]))
    assert meta["checkpoint"] == "checkpoint.pth"
    assert meta["checkpoint_step"] == checkpoint["step"]
    assert meta["seed"] == config.seed
    assert {"weights", "sampling", "sde", "stream", "round"} < meta.keys()


@pytest.mark.parametrize(("factor", "warned"), [(30.0, True), (0.05, False)])
def test_samples_that_are_mostly_clipped_get_a_warning(config, monkeypatch, factor, warned):
    said = []
    monkeypatch.setattr(run_lib_sampling.log, "warning", said.append)
    x = factor * torch.randn(4, 1, 8, 8)
    run_lib_sampling.check_values(x, domains.from_config(config.data), "samples_0.npz")
    assert len(said) == warned
    assert all("samples_0.npz" in text for text in said)


def test_progress_of_an_ode_is_that_of_time():
    bar = tqdm(total=30, file=io.StringIO())
    progress = RoundProgress(bar, 20, 10, None)
    for share, time, nfe in ((0.0, 1.0, 2), (0.25, 0.75, 8), (0.25, 0.75, 14)):
        progress(share, time, nfe)
    assert bar.n == 22
    assert "nfe=14" in bar.postfix
    assert "t=0.75" in bar.postfix


def test_the_sampler_has_its_own_number_of_steps(config, run):
    """--num_scales does not change the network's number of noise levels."""
    done = command("run_lib_sampling.py --workdir run --num_scales 5", run, tiny.arguments("cache"))
    assert done.returncode == 0, done.stderr
    file = load_npz(run / "results/run/eval_sampling/0/samples_0.npz", "nfe", "meta")
    assert int(file["nfe"]) == 10
    assert json.loads(str(file["meta"]))["sampling"]["num_scales"] == 5


# ---------------------------------------------------------------- samplers by name


def images(method):
    """All samples (N, H, W, C) of a method, in the order of divisions and rounds."""
    folder = Workdir("run").division(0, f"_{method}").parent
    folders = sorted(folder.glob("*"), key=lambda p: int(p.name))
    paths = [path for folder in folders for _, path in numbered_rounds(folder)]
    return np.concatenate([load_npz(path, "samples")["samples"] for path in paths])


@pytest.mark.parametrize("name", ["churn"])
def test_what_shares_the_work_changes_no_fast_samplers_images(config, monkeypatch, name):
    """Batches, divisions and processes: equal in 99.9 % of the pixels, because a network's
    convolutions round by the size of the batch."""
    config.sampling.method, config.sampling.steps = name, 4
    found = []
    for batch_size, divisions, processes in ((1, 1, 1), (7, 4, 2), (50, 2, 3)):
        config.eval.batch_size, config.eval.num_divisions = batch_size, divisions
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        for rank in range(processes):
            monkeypatch.setenv("RANK", str(rank))
            sample(config, "run")
        found.append(images(name))
        shutil.rmtree(Workdir("run").division(0, f"_{name}").parent)
    for other in found[1:]:
        assert (other == found[0]).mean() >= 0.999
    assert len(np.unique(found[0], axis=0)) == 30


def test_fast_samples_lie_apart_and_say_what_made_them(config, run):
    """By the flags, and evaluated by the same ones."""
    line = "run_lib_sampling.py --workdir run --sampler heun --steps 3"
    done = command(line, run, tiny.arguments(run / "cache"))
    assert done.returncode == 0, done.stderr
    content = load_npz(Workdir("run").division(0, "_heun") / "samples_0.npz", "meta", "nfe")
    assert int(content["nfe"]) == 5
    settings = json.loads(str(content["meta"]))["sampling"]
    assert {"method": "heun", "steps": 3, "grid": "karras"}.items() <= settings.items()
    assert "snr" not in settings
    assert not (run / "results/run/eval_sampling").exists()
    line = "run_lib_evaluation.py --workdir run --sampler heun --nfe"
    done = command(line, run, tiny.arguments(run / "cache"))
    assert "Mean NFE 5.0 over 30 samples" in done.stdout, done.stderr
    shutil.rmtree(Workdir("run").division(0, "_heun").parent)
