"""The training loop: files, restored weights, and what is not finite."""

import numpy as np
import pytest
import tiny
import tiny_classifier
import torch

import run_lib
from storage.workdir import Workdir
from utils import UserError, log, log_to


def test_a_run_writes_its_files(here, cache):
    config = tiny.config(cache, training__snapshot_sampling=True)
    run_lib.train(config, "run")
    root = here / "results" / "run"
    tiny.check_files_of_a_run(root)
    assert tiny.newest("run")["step"] == 8
    images = np.load(root / "samples/iter_8/sample.np")
    assert images.shape == (4, 8, 8, 1)
    assert images.dtype == np.uint8
    assert "test: loss" in (root / "stdout.txt").read_text()
    # A finished run has nothing to do.
    before = Workdir("run").checkpoint().stat().st_mtime_ns
    run_lib.train(config, "run")
    assert Workdir("run").checkpoint().stat().st_mtime_ns == before


def test_the_log_file_has_what_was_logged_before(tmp_path):
    """Such as warnings about the images and the restored weights."""
    log_to()
    log.warning("early")
    log_to(tmp_path / "stdout.txt")
    log.info("late")
    log_to()
    lines = (tmp_path / "stdout.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["early", "late"]


def test_restore_starts_from_another_run(here, cache, capsys):
    run_lib.train(tiny.config(cache), "first")
    source = Workdir("first").checkpoint()
    run_lib.train(tiny.config(cache, training__n_iters=12), "second", restore=str(source))
    assert tiny.newest("second")["step"] == 12
    assert tiny.newest("second")["position"] == 12 * 16
    assert f"Restored {source} at step 8." in capsys.readouterr().out
    with pytest.raises(UserError, match="n_iters"):
        run_lib.train(tiny.config(cache), "third", restore=str(source))
    assert not Workdir("third").root.exists()
    energy = {"model__energy": True, "training__n_iters": 9}
    run_lib.train(tiny.config(cache, **energy), "energy", restore=str(source))
    assert "model.energy False, and this run has True" in capsys.readouterr().out


def test_init_step_counts_only_with_a_restored_file_without_a_step(here, cache):
    config = tiny.config(cache, training__init_step=6)
    run_lib.train(config, "new")
    assert tiny.newest("new")["step"] == 8
    content = tiny.newest("new")
    del content["step"], content["position"]
    torch.save(content, "published.pth")
    run_lib.train(config, "restored", restore="published.pth")
    # Two updates after the published file's eight.
    assert tiny.newest("restored")["ema"]["num_updates"] == 10


def check_only_finite_checkpoints(here):
    paths = list(here.rglob("*.pth"))
    assert len(paths) == 3
    for path in paths:
        content = torch.load(path, weights_only=True)
        assert content["step"] < 6
        moments = [m[n] for m in content["optimizer"]["state"].values() for n in m]
        for value in [*content["model"].values(), *content["ema"]["shadow_params"], *moments]:
            assert value.isfinite().all()


def test_a_non_finite_gradient_stops_the_run(here, cache):
    """Though the loss is finite; it is named, and so is the step."""

    class Spoiled(run_lib.ScoreTraining):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            objective, calls = self.objective, []

            def spoiled(*batch):
                loss, values = objective(*batch)
                calls.append(1)
                if len(calls) == 6:
                    loss.register_hook(lambda gradient: gradient * float("nan"))
                return loss, values

            spoiled.draw, spoiled.evaluate = objective.draw, objective.evaluate
            self.objective = spoiled

    with pytest.raises(UserError, match=r"grad_norm .* step 6"):
        run_lib.train(tiny.config(cache, training__log_freq=7), "run", make_job=Spoiled)
    check_only_finite_checkpoints(here)


def test_an_energy_needs_the_continuous_ve_sde(here, cache):
    more = {"sampling__method": "heun", "training__sde": "vpsde"}
    config = tiny.config(cache, model__energy=True, **more)
    with pytest.raises(UserError, match="VE SDE"):
        run_lib.train(config, "run")
    assert list(here.iterdir()) == []


# ---------------------------------------------------------------- parts of a batch


def gradients(job, microbatch, seed=0):
    """The parameters' gradients and the values of one batch of 10 images."""
    torch.manual_seed(seed)
    x, labels = torch.rand(10, 1, 8, 8), torch.randint(10, (10,))
    draws = job.objective.draw(x)
    job.model.train().zero_grad()
    values = run_lib.accumulate_gradients(job.objective, x, labels, draws, microbatch)
    return [p.grad for p in job.model.parameters() if p.requires_grad], values


def check_same_gradients(ours, theirs):
    """Every parameter's, to 1e-5 of its norm (or of a thousandth of the largest)."""
    largest = max(g.norm() for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * torch.maximum(b.norm(), 1e-3 * largest)


DSM = {"loss__balancing_fac": 0.0}
QC = {"loss__balancing_fac": 0.1, "loss__slices": 3}
ENERGY = {"model__energy": True}


def score_job(cache, **more):
    """A score model's training, all of whose weights matter: new ones have an output near 0."""
    config = tiny.config(cache, **more)
    torch.manual_seed(0)
    job = run_lib.ScoreTraining(config, torch.device("cpu"))
    with torch.no_grad():
        for parameter in job.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return job


@pytest.mark.parametrize("kind", [DSM, QC, ENERGY], ids=["dsm", "qc", "energy"])
def test_microbatches_give_the_whole_batchs_gradient(cache, kind):
    """Also where the last part is smaller, 2 of 10."""
    job = score_job(cache, model__dropout=0.0, **kind)
    expected, whole = gradients(job, None)
    ours, values = gradients(job, 4)
    check_same_gradients(ours, expected)
    torch.testing.assert_close(values, whole)


def test_mistaken_microbatches_get_a_sentence(here, cache):
    with pytest.raises(UserError, match=r"training.microbatch"):
        run_lib.train(tiny.config(cache, training__microbatch=0), "run")
    tiny_classifier.train_score(cache)
    with pytest.raises(UserError, match=r"training.microbatch"):
        tiny_classifier.train(cache, "run", training__microbatch=8)
    assert not Workdir("run").root.exists()
