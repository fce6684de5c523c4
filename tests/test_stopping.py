"""Stops: what a kill or a signal costs, where a run goes on, and what it may not change."""

import os
import re
import signal

import pytest
import tiny
from faults import tree
from forks import in_a_fork

import run_lib
from storage import checkpoints
from storage.workdir import Workdir
from training.safeguards import Stopped, StopRequest
from utils import UserError

FREQUENCY = 3
MORE = {
    "model__nf": 4,
    "training__batch_size": 16,  # few parts make validation short
    "training__n_iters": 6,
    "training__eval_freq": 3,
    "training__snapshot_freq": 4,
    "training__snapshot_freq_for_preemption": FREQUENCY,
    "training__snapshot_sampling": True,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory, the present one, with the data's cache and an undisturbed run, ``whole``."""
    here = tmp_path_factory.mktemp("stopping")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        run_lib.train(tiny.config(here / "cache", **MORE), "whole")
        yield here


def kept(name):
    """The step at which the run `name` goes on."""
    return run_lib.resuming.find(Workdir(name), None).content.get("step", 0)


def assert_undisturbed(name):
    """The files of the run `name` have the bytes of the undisturbed run."""
    found, expected = tree(Workdir(name).root), tree(Workdir("whole").root)
    assert found.keys() == expected.keys()
    assert [path for path in found if found[path] != expected[path]] == []


def signal_at_second_call(owner, function, number, done):
    """Let the second call of a function begin with the signal `number`; `done` gets its step."""
    original, calls = getattr(owner, function), []

    def replaced(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            (state,) = (a for a in arguments if isinstance(a, checkpoints.TrainState))
            done.write_text(str(state.step))
            os.kill(os.getpid(), number)
        return original(*arguments)

    setattr(owner, function, replaced)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    ("owner", "function"),
    [(run_lib, "training_step"), pytest.param(checkpoints, "save", marks=pytest.mark.slow)],
)
def test_a_stopped_run_ends_with_the_bytes_of_an_undisturbed_one(here, owner, function, number):
    """A kill costs the steps since the last resume point, SIGTERM none."""
    name = f"{number}-{owner.__name__}-{function}"
    done = here / name

    def begin():
        signal_at_second_call(owner, function, number, done)
        run_lib.train(tiny.config(here / "cache", **MORE), name)

    status = in_a_fork(begin)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    lost = FREQUENCY if number == signal.SIGKILL else 0
    assert kept(name) >= int(done.read_text()) - lost
    run_lib.train(tiny.config(here / "cache", **MORE), name)
    assert_undisturbed(name)


# ---------------------------------------------------------------- how soon


@pytest.mark.parametrize(("part", "step"), [("validation", 3), ("pictures", 4)])
def test_sigterm_is_heeded_between_batches_and_between_steps(here, monkeypatch, part, step):
    """Of a validation in eight parts one is finished, of a sampler's steps one of two NFE."""
    calls = []

    def interrupted(function):
        def call(*arguments):
            calls.append(part)
            os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments)

        return call

    class Job(run_lib.ScoreTraining):
        def pictures(self, *arguments):
            self.score = interrupted(self.score)
            return super().pictures(*arguments)

    with monkeypatch.context() as patch:
        if part == "validation":
            evaluate = interrupted(run_lib.losses.DSM.evaluate)
            patch.setattr(run_lib.losses.DSM, "evaluate", evaluate)
        with pytest.raises(SystemExit) as stopped:
            run_lib.train(tiny.config(here / "cache", **MORE), part, make_job=Job)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(calls) == (1 if part == "validation" else 2)
    assert kept(part) == step
    run_lib.train(tiny.config(here / "cache", **MORE), part)
    assert_undisturbed(part)


def test_a_second_ctrl_c_leaves_at_once():
    def interrupt_twice():
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
            with pytest.raises(Stopped):
                stop.check()
            os.kill(os.getpid(), signal.SIGINT)

    assert in_a_fork(interrupt_twice) == 128 + signal.SIGINT


# ---------------------------------------------------------------- what may change


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 43),
        ("training.batch_size", 8),
        ("loss.balancing_fac", 0.5),
        ("model.sigma_max", 4.0),
        ("training.snapshot_freq", 2),  # checkpoint_1.pth would be of two steps
    ],
)
def test_a_run_does_not_go_on_as_another(here, field, value):
    config = tiny.config(here / "cache", **{**MORE, "training__n_iters": 7})
    config.update_from_flattened_dict({field: value})
    files = tree(Workdir("whole").root)
    with pytest.raises(UserError, match=re.escape(field)):
        run_lib.train(config, "whole", typed=[field])
    assert tree(Workdir("whole").root) == files


def test_what_does_not_change_the_meaning_of_a_step_may_change(here):
    run_lib.train(tiny.config(here / "cache", **{**MORE, "training__n_iters": 3}), "going on")
    more = {
        "training__eval_freq": 2,
        "training__microbatch": 2,
        "training__snapshot_freq_for_preemption": 1,
        "training__snapshot_freq": 5,  # none is written yet
        "compute__channels_last": True,
        "optim__lr": 1e-5,
        "sampling__snr": 0.1,
    }
    run_lib.train(tiny.config(here / "cache", **{**MORE, **more}), "going on")
    text = (Workdir("going on").root / "stdout.txt").read_text()
    assert "at step 3." in text
    assert "optim.lr 1e-05 instead of" in text


# ---------------------------------------------------------------- validation


def test_validation_of_one_model_gives_one_number(here):
    """Whatever the step: the images and all draws are fixed."""
    config = tiny.config(
        here / "cache",
        **{**MORE, "optim__lr": 0.0, "training__eval_freq": 1, "model__dropout": 0.0},
    )
    run_lib.train(config, "still")
    text = (Workdir("still").root / "stdout.txt").read_text()
    values = re.findall(r"Step \d, test: loss (\S+)\.\n", text)
    assert len(values) == 6
    assert len(set(values)) == 1
