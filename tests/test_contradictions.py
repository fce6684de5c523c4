"""Between commands: files that contradict are refused, and numbers say what they are of."""

import json
import shutil

import commands
import numpy as np
import pytest
import tiny
import tiny_classifier
import torch
from PIL import Image

import run_lib
from models.trained import load_score
from storage import checkpoints
from storage.workdir import Workdir
from training import resuming
from utils import UserError

CPU = torch.device("cpu")
EVALUATION = "run_lib_evaluation.py --workdir W"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with the score model "W" of 8 steps, snapshots at 4 and 8, and a classifier."""
    here = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        run_lib.train(tiny.config("cache"), "W")
        tiny_classifier.train_score("cache")
        tiny_classifier.train("cache", "classifier", training__n_iters=2)
    return here


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of it, the present directory."""
    shutil.copytree(trained, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def flags(*more):
    return [*tiny.arguments("cache"), "--config.eval.features=classifier", *more]


def works(line, *more):
    return commands.works(line, ".", flags(*more))


def refused(line, named, *more):
    commands.refused(line, ".", flags(*more), named)


# ---------------------------------------------------------------- training


def test_a_second_training_is_refused_before_it_changes_a_file(here):
    place = Workdir("W")
    before = {path: path.stat().st_ino for path in place.root.rglob("*.pth")}
    with place.sole_trainer(), pytest.raises(UserError, match="Another"):
        run_lib.train(tiny.config("cache", training__n_iters=12), "W")
    assert {path: path.stat().st_ino for path in place.root.rglob("*.pth")} == before


def test_training_does_not_replace_a_file_that_was_put_there(here):
    path = Workdir("published").checkpoint()
    path.parent.mkdir(parents=True)
    torch.save({"model": checkpoints.read(Workdir("W").checkpoint())["model"]}, path)
    before = path.read_bytes()
    for name, restored in ((None, False), (None, True), (2, True)):  # 2 is the run's last
        path = path.rename(Workdir("published").checkpoint(name))
        config = tiny.config("cache", training__init_step=0)
        with pytest.raises(UserError, match=f"{path} .* replace it"):
            run_lib.train(config, "published", path if restored else None)
    path = path.rename(Workdir("published").checkpoint(1))  # of the step at which it starts
    works(f"main.py --workdir published --restore {path}", "--config.training.init_step=4")
    assert path.read_bytes() == before
    assert resuming.find(Workdir("published"), None).content["step"] == 8


def test_a_damaged_file_alone_is_no_start(here):
    """Beside a published file, and whatever is to be restored: its run would be lost."""
    content = checkpoints.read(Workdir("W").checkpoint())
    shutil.rmtree(Workdir("W").resume_point.parent)
    for path in Workdir("W").checkpoints.iterdir():
        path.unlink()
    torch.save({"model": content["model"]}, Workdir("W").checkpoint(70))
    Workdir("W").checkpoint(71).write_bytes(b"PK")
    torch.save(content, "good.pth")
    refused("main.py --workdir W --restore good.pth", "checkpoint_71.pth")
    Workdir("W").checkpoint(71).unlink()
    torch.save(content, Workdir("W").checkpoint())  # of a run, alone
    assert resuming.find(Workdir("W"), None).content["step"] == 8


def test_the_newest_own_state_that_can_be_read_counts(here):
    """By its step; with it damaged the snapshot before it counts."""
    place = Workdir("W")
    place.checkpoint(1).touch()  # a copied workdir has other times
    assert resuming.find(place, None).content["step"] == 8
    shutil.copy(Workdir("W").checkpoint(2), place.checkpoint(70))
    torch.save({"model": {}, "step": 3}, place.checkpoint(70))  # of another code
    assert resuming.find(place, None).content["step"] == 8
    place.resume_point.unlink()
    place.checkpoint(2).write_bytes(b"damaged")
    place.checkpoint().write_bytes(b"damaged")
    assert resuming.find(place, None).content["step"] == 4
    torch.save({"model": {"w": torch.zeros(1)}}, place.checkpoint())  # a published file
    assert resuming.find(place, None).foreign == (place.checkpoint(),)


@pytest.mark.parametrize("given", [{"restore": "x.pth"}, {"pretrained": "directory"}])
def test_weights_that_come_too_late_are_noted(here, given):
    ((field, name),) = given.items()
    (note,) = resuming.find(Workdir("W"), **{"restore": None, **given}).notes
    assert field in note
    assert name in note


@pytest.mark.parametrize(
    ("config", "restore"),
    [("digits", "classifier"), ("digits", "cas")],
)
def test_a_checkpoint_of_another_kind_is_no_start(here, config, restore):
    path = Workdir("classifier").checkpoint()
    if restore == "cas":
        content = checkpoints.read(Workdir("W").checkpoint())
        told = json.loads(content["config"]) | {"cas": {"model": "small_cnn"}}
        path = here / "cas.pth"
        torch.save(content | {"config": json.dumps(told)}, path)
    refused(f"main.py --workdir new --restore {path}", "expected a score model")
    assert not Workdir("new").root.exists()


def test_words_that_belong_to_no_flag_are_refused(here):
    refused("main.py --workdir new --restore a.pth b.pth", "b.pth")


# ---------------------------------------------------------------- what numbers are of


def test_weights_without_averages_are_not_called_averages(here):
    content = checkpoints.read(Workdir("W").checkpoint())
    torch.save({"state_dict": content["model"]}, "bare.pth")
    config = tiny.config("cache")
    assert load_score(config, "bare.pth", CPU).loaded.ema is None
    assert "EMA" not in str(load_score(config, "bare.pth", CPU).loaded)
    assert load_score(config, Workdir("W").checkpoint(), CPU).loaded.ema is True


def folder_of_images(root, seed, classes=("a", "b")):
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(3):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{seed}_{index}.png")


def test_a_likelihood_of_other_data_is_calculated_anew(here):
    for name, seed in (("one", 0), ("two", 1)):
        folder_of_images(here / name, seed)
    line = f"{EVALUATION} --metric asym --calculate --read --nl 1"
    data = "--config.data.dataset=folder"
    works(line, data, "--config.data.root=one")
    works(line, data, "--config.data.root=one")
    refused(line, "data=", data, "--config.data.root=two")


@pytest.mark.parametrize("metric", ["nll", "asym"])
def test_all_files_are_checked_before_a_batch_is_evaluated(here, metric):
    """Training went on, and the first file is missing: nothing of the new step is written."""
    line = f"{EVALUATION} --metric {metric} --calculate --bs 3 --num_images 6 --nl 1".split()
    line = " ".join(line if metric == "asym" else line[:-2])
    works(line)
    folder = Workdir("W").root / metric
    for path in (folder / "bpd_0.npz", folder / "repeat_0/batch_0.npz"):
        path.unlink(missing_ok=True)
    before = sorted(folder.rglob("*"))
    works("main.py --workdir W", "--config.training.n_iters=9")
    refused(line, "checkpoint_step=8 (now 9)")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("typed", ["--config.seed=7", "--config.data.dataset=MNIST"])
def test_reading_files_of_other_settings_is_refused(here, typed):
    line = f"{EVALUATION} --metric asym --num_images 6 --nl 1"
    works(f"{line} --calculate --read")
    refused(f"{EVALUATION} --metric asym --read", typed.partition("=")[0].removeprefix("--"), typed)


def test_a_named_checkpoint_has_no_number(here):
    """And the likelihood is that of the named one."""
    named = f"--config.model.score_restore_path={Workdir('W').checkpoint(1)}"
    refused("run_lib_sampling.py --workdir new --checkpoint_idx 1", "--checkpoint_idx", named)
    line = "run_lib_evaluation.py --workdir new --metric asym --num_images 6 --nl 1 --calculate"
    refused(f"{line} --checkpoint_idx 1", "--checkpoint_idx", named)
    assert "step 4 (checkpoint_1.pth)" in works(line, named)


@pytest.fixture
def sampled(here):
    """The same with six samples, whose features are there."""
    works("run_lib_sampling.py --workdir W --num_samples 6 --num_divisions 2 --bs 3")
    works(f"{EVALUATION} --encode --encode_dataset", *SIX)
    return here


SIX = ["--config.eval.num_samples=6", "--config.eval.num_divisions=2"]


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("--fidis", "--config.sampling.snr=0.9"),
        ("--fidis", "--config.seed=7"),
        ("--fidis", "--config.eval.checkpoint_idx=1"),
        ("--nfe", "--config.sampling.predictor=none"),
        ("--encode", "--config.sampling.snr=0.9"),
        ("--metric nll --read", "--config.eval.rtol=0.5"),
        ("--stat", "--scale=3"),
    ],
)
def test_a_typed_field_that_contradicts_the_samples_is_refused(sampled, line, typed):
    field = typed.partition("=")[0].removeprefix("--")
    refused(f"{EVALUATION} {line}", field, *SIX, typed)


def test_features_of_other_rounds_are_not_kept(sampled):
    """pc's noise depends on the sizes of the rounds, and so do the images."""
    assert "dataset digits, split train" in works(f"{EVALUATION} --encode --fidis", *SIX)
    shutil.rmtree(Workdir("W").division(0, "").parent)
    works("run_lib_sampling.py --workdir W --num_samples 6 --num_divisions 2 --bs 2")
    refused(f"{EVALUATION} --encode", "rounds", *SIX)


def test_a_renamed_class_is_refused(here):
    """By class-wise metrics: the samples of a class would be compared with another's images."""
    folder_of_images(here / "own", 0, classes=("1", "2"))
    data = ["--config.data.dataset=folder", "--config.data.root=own"]
    by_class = [*data, "--config.model.num_classes=2", *SIX, "--config.eval.num_samples_all=6"]
    once = [flag for flag in flags() if "num_samples" not in flag and "num_divisions" not in flag]
    typed = [*once, *by_class]
    commands.works("main.py --workdir O", ".", typed)
    for line in ("--dry_run", "--mode full"):  # the plan and the log name the classes
        said = commands.works(f"run_lib_sampling.py --workdir O --bs 3 {line}", ".", typed)
        assert "class 0 (1) to class 1 (2)" in said
    for split in ("train", "test"):
        (here / "own" / split / "1").rename(here / "own" / split / "zero")
    line = "run_lib_evaluation.py --workdir O --stat --latent --fidis --mode class"
    commands.refused(line, ".", typed, "zero")
    commands.refused("main.py --workdir O", ".", [*typed, "--config.training.n_iters=9"], "zero")
