"""Class-guided sampling: which classes, which rounds, reproducible bytes, refusals."""

import shutil

import numpy as np
import pytest
import tiny_classifier

from run_lib_sampling import sample
from storage.files import load_npz
from storage.workdir import Workdir
from utils import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory with a trained score model, two trained classifiers, and the data cache."""
    here = tmp_path_factory.mktemp("class_sampling")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        tiny_classifier.train_score(here / "cache")
        tiny_classifier.train(here / "cache", "run", training__n_iters=4)
        tiny_classifier.train(here / "cache", "other", training__n_iters=3)
    return here


@pytest.fixture
def config(run, monkeypatch):
    """The tiny configuration, 3 samples of each of 10 classes in rounds of 2 and 1."""
    monkeypatch.chdir(run)
    yield tiny_classifier.config("guided", run / "cache")
    for name in ("eval_samples", "eval_samples_ode"):
        shutil.rmtree(run / "results/run" / name, ignore_errors=True)


def files(name="eval_samples"):
    root = Workdir("run").root / name
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.npz")}


def names(classes, rounds=(0, 1)):
    return {f"{label}/samples_{index}.npz" for label in classes for index in rounds}


def test_all_classes(config):
    sample(config, "run", range(10))
    assert files().keys() == names(range(10))
    for label in range(10):
        folder = Workdir("run").class_samples(label, "")
        shapes = [load_npz(folder / f"samples_{k}.npz", "samples")["samples"] for k in (0, 1)]
        assert [a.shape for a in shapes] == [(2, 8, 8, 1), (1, 8, 8, 1)]
        assert {a.dtype for a in shapes} == {np.dtype(np.uint8)}
        assert (folder / "samples_0.png").exists()
    assert len(set(files().values())) == 20


def test_a_division_is_a_share_of_each_classs_rounds(config):
    config.eval.num_divisions = 2
    classes = range(3)
    sample(config, "run", classes, division_idx=1)
    assert files().keys() == names(classes, [1])
    second = files()
    sample(config, "run", classes, division_idx=0)
    both = files()
    assert both.keys() == names(classes)
    assert {name: both[name] for name in second} == second
    # The same bytes without divisions: noise belongs to (seed, class, round).
    shutil.rmtree(Workdir("run").root / "eval_samples")
    config.eval.num_divisions = 1
    sample(config, "run", classes)
    assert files() == both


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sampling.scaling_factor", 10.0, "sampling"),
        ("model.classifier_restore_path", "results/other/checkpoints/checkpoint.pth", "classif"),
    ],
)
def test_samples_of_other_settings_are_not_mixed(config, field, value, said):
    sample(config, "run", [0])
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=said):
        sample(config, "run", [0])


@pytest.mark.parametrize(
    ("method", "interval", "said"),
    [
        ("pc", (0.1, 1.0), "pc guides at every noise level"),
        ("heun", (1.0, 0.1), "expected two noise levels, the smaller one first"),
    ],
)
def test_mistaken_intervals_get_a_sentence(config, method, interval, said):
    config.sampling.method, config.sampling.guidance_interval = method, interval
    with pytest.raises(UserError, match=said):
        sample(config, "run", [3])
