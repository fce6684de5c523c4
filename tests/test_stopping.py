"""Stops of every kind: what a kill or a signal costs, and how soon a signal is obeyed."""

import collections
import inspect
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time

import pytest
import tiny
import torch
from faults import tree
from forks import in_a_fork
from test_checkpoints import assert_equal

import run_lib
from storage import checkpoints
from storage.files import atomic_write
from storage.workdir import Workdir
from training import safeguards
from utils import UserError

FREQUENCY = 3
MORE = {
    "model__nf": 4,
    "training__batch_size": 16,  # few parts make validation short
    "training__n_iters": 6,
    "training__snapshot_freq": 4,
    "training__snapshot_freq_for_preemption": FREQUENCY,
    "training__snapshot_sampling": True,
}
PARTS = 4
# Where runs are killed: within these functions, at every line that a run comes to.
WATCHED = {
    inspect.unwrap(function).__code__
    for function in (
        run_lib.train,
        run_lib.training_step,
        run_lib.save,
        run_lib.publish,
        run_lib.validate,
        run_lib.draw_pictures,
        run_lib.ScoreTraining.validate,
        run_lib.ScoreTraining.pictures,
        checkpoints.save,
        checkpoints.publish,
        atomic_write,
    )
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory, the present one, with the data's cache and an undisturbed run, ``whole``."""
    here = tmp_path_factory.mktemp("stopping")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        run_lib.train(tiny.config(here / "cache", **MORE), "whole")
        yield here


def quiet_training(here, name, visit):
    """Train the run `name`, calling ``visit(frame, step)`` before every watched line of the loop.

    Only once the loop has begun: before that there is nothing to lose.
    """
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    begun = []

    class Begun(safeguards.StopRequest):
        def __enter__(self):
            result = super().__enter__()
            begun.append(self)
            return result

    run_lib.StopRequest = Begun

    def trace(frame, event, argument):
        if begun and event == "line":
            state = frame.f_locals.get("state")
            visit(frame, state.step if state is not None else None)
        return trace if frame.f_code in WATCHED else None

    def everything(frame, event, argument):
        return trace(frame, event, argument) if frame.f_code in WATCHED else None

    sys.settrace(everything)
    sys._getframe(0).f_trace = trace
    run_lib.train(tiny.config(here / "cache", **MORE), name)


def count_lines(here, name):
    """Write how often each watched line is come to, as JSON, to the file of that name."""
    counts = collections.Counter()

    def visit(frame, step):
        counts[f"{frame.f_code.co_name}:{frame.f_lineno}"] += 1

    quiet_training(here, name, visit)
    sys.settrace(None)
    (here / f"{name}.json").write_text(json.dumps(counts))


def stop_at(here, name, line, occurrence, number):
    """Send the signal `number` to this process at one line; note the steps done in a file."""
    left = [occurrence]
    done = [0]

    def visit(frame, step):
        done[0] = step or done[0]
        if f"{frame.f_code.co_name}:{frame.f_lineno}" == line:
            left[0] -= 1
            if left[0] == 0:
                (here / f"{name}.{number}").write_text(str(done[0]))
                os.kill(os.getpid(), number)

    quiet_training(here, name, visit)


def stopped(here, name, line, occurrence, number):
    """Train on until a signal at a line: the exit status, the steps done then and those kept.

    The run may end before; the steps done are then None.
    """
    status = in_a_fork(stop_at, here, name, line, occurrence, number)
    noted = here / f"{name}.{number}"
    path, content, _ = run_lib.resuming.newest_state(Workdir(name))
    kept = 0 if path is None else content["step"]
    return status, int(noted.read_text()) if noted.exists() else None, kept


@pytest.mark.parametrize("part", range(PARTS))  # of the lines: one test would be the longest by far
def test_stopped_at_every_line_a_run_loses_no_more_than_it_may(here, part):
    """At every line a kill, and SIGTERM: in the run that goes on, if it comes to that line again.

    A kill costs the steps since the last resume point, SIGTERM none. At the end every file has the
    bytes of the undisturbed run.
    """
    counted = f"counted-{part}"
    assert in_a_fork(count_lines, here, counted) == 0
    lines = json.loads((here / f"{counted}.json").read_text())
    assert len(lines) > 60
    assert_undisturbed(counted, counted)
    rng = random.Random(part)
    for index, (line, count) in list(enumerate(lines.items()))[part::PARTS]:
        name = f"stopped-{index}"
        first = rng.randint(1, count)
        status, done, kept = stopped(here, name, line, first, signal.SIGKILL)
        assert status == -signal.SIGKILL
        assert done - kept <= FREQUENCY, line

        again = rng.randint(1, count - first + 1)
        status, done, kept = stopped(here, name, line, again, signal.SIGTERM)
        if done is None:
            assert status == 0
            assert_undisturbed(name, line)
            name = f"stopped-{index}-alone"
            status, done, kept = stopped(here, name, line, first, signal.SIGTERM)
        # It may come too late, when all is done.
        assert status == 128 + signal.SIGTERM or done == 6, (line, status)
        assert kept >= done, line
        run_lib.train(tiny.config(here / "cache", **MORE), name)
        assert_undisturbed(name, line)


def assert_undisturbed(name, line):
    """The files of the run `name` have the bytes of the undisturbed run."""
    found, expected = tree(Workdir(name).root), tree(Workdir("whole").root)
    assert found.keys() == expected.keys(), line
    assert [path for path in found if found[path] != expected[path]] == [], line


# ---------------------------------------------------------------- how soon


class Endless(run_lib.ScoreTraining):
    """A job of which one part takes a minute, in Python now and then as a network does."""

    slow = None

    def __init__(self, config, device):
        super().__init__(config, device)
        setattr(self, self.slow, self.last)

    def last(self, *arguments):
        (Workdir("slow").root / "entered").touch()
        for _ in range(600):
            time.sleep(0.1)


@pytest.mark.parametrize("part", ["validate", "pictures", "objective"])
def test_sigterm_reaches_into_what_takes_long(here, part):
    """Into validation, pictures and a step that would take a minute; no step is lost."""
    place = Workdir("slow")
    entered = place.root / "entered"

    def begin():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        Endless.slow = part
        if part == "objective":
            draw = run_lib.losses.DSM.draw
            Endless.last.draw = lambda x: draw(None, x)
        run_lib.train(tiny.config(here / "cache", **MORE), "slow", make_job=Endless)

    process = multiprocessing.get_context("fork").Process(target=begin)
    process.start()
    while not entered.exists():
        time.sleep(0.05)
        assert process.is_alive()
    time.sleep(0.2)
    begun = time.monotonic()
    process.terminate()
    process.join(30)
    assert time.monotonic() - begun < 10
    assert process.exitcode == 128 + signal.SIGTERM
    _, content, _ = run_lib.resuming.newest_state(place)
    assert content is None if part == "objective" else content["step"] == 4
    run_lib.train(tiny.config(here / "cache", **MORE), "slow")
    entered.unlink()
    assert tree(place.root) == tree(Workdir("whole").root)
    assert in_a_fork(os.system, f"rm -r {place.root}") == 0


@pytest.mark.parametrize("over", ["parameters", "input"])
def test_signals_are_heeded_within_a_backward_pass(over, monkeypatch):
    """Over the parameters as in an update, or over the input as in Jᵀv and in guidance."""
    passed = []

    def pause(gradient):
        passed.append(gradient)
        if len(passed) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(safeguards, "_pause", pause)
    network = torch.nn.Sequential(*(torch.nn.Linear(40, 40) for _ in range(20)))
    safeguards.heed_signals(network)
    x = torch.randn(4, 40, requires_grad=True)
    out = network(x).sum()
    wanted = list(network.parameters()) if over == "parameters" else x
    with safeguards.StopRequest() as stop:
        assert stop.attempt(torch.autograd.grad, out, wanted) is None
    assert stop.signal == signal.SIGTERM
    assert 3 <= len(passed) <= 4


def test_an_attempt_after_a_stop_is_none():
    with safeguards.StopRequest() as stop:
        assert stop.attempt(max, 1, 2) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.attempt(max, 1, 2) is None


# ---------------------------------------------------------------- what is written, what is taken


def test_a_step_is_written_once(here, monkeypatch):
    written = []
    save = checkpoints.save
    monkeypatch.setattr(
        checkpoints,
        "save",
        lambda path, state, config: written.append(state.step) or save(path, state, config),
    )
    run_lib.train(tiny.config(here / "cache", **MORE), "once")
    assert written == [3, 4, 6]


def test_a_damaged_state_is_passed_over_for_an_older_one(here):
    config = tiny.config(here / "cache", **{**MORE, "training__n_iters": 3})
    run_lib.train(config, "damaged")
    place = Workdir("damaged")
    run_lib.train(tiny.config(here / "cache", **{**MORE, "training__n_iters": 5}), "damaged")
    newest = place.checkpoint(1)
    newest.write_bytes(newest.read_bytes()[:-100])
    older = here / "older.pth"
    run_lib.train(config, "older")
    older.write_bytes(Workdir("older").resume_point.read_bytes())
    place.resume_point.unlink()
    older.rename(place.resume_point)
    run_lib.train(tiny.config(here / "cache", **MORE), "damaged")
    assert "Passed over: " in (place.root / "stdout.txt").read_text()
    assert_equal(
        checkpoints.read(place.checkpoint()), checkpoints.read(Workdir("whole").checkpoint())
    )


def test_published_files_to_sample_from_are_no_state(here):
    """They do not say where a run stood."""
    content = checkpoints.read(Workdir("whole").checkpoint())
    for name in ("position", "config", "code", "seed"):
        del content[name]
    place = Workdir("published")
    place.checkpoints.mkdir(parents=True)
    torch.save(content, place.checkpoint(70))
    assert run_lib.resuming.newest_state(place) == (None, None, [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 43),
        ("training.batch_size", 8),
        ("training.likelihood_weighting", True),
        ("loss.balancing_fac", 0.5),
        ("loss.estimator", "skew"),
        ("model.sigma_max", 4.0),
        ("model.dropout", 0.0),
        ("data.random_flip", True),
    ],
)
def test_a_run_does_not_go_on_as_another(here, field, value):
    config = tiny.config(here / "cache", **{**MORE, "training__n_iters": 7})
    config.update_from_flattened_dict({field: value})
    said = rf"whole/.*checkpoint.*was trained with config\.{re.escape(field)} .* \(now {value}\)"
    files = tree(Workdir("whole").root)
    with pytest.raises(UserError, match=said):
        run_lib.train(config, "whole")
    assert tree(Workdir("whole").root) == files


def test_what_does_not_change_the_meaning_of_a_step_may_change(here):
    run_lib.train(tiny.config(here / "cache", **{**MORE, "training__n_iters": 3}), "going on")
    more = {
        "training__eval_freq": 2,
        "training__microbatch": 2,
        "training__snapshot_freq_for_preemption": 1,
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


def test_stratified_times_miss_no_part():
    torch.manual_seed(0)
    u = run_lib.losses.stratified(torch.rand(64))
    assert sorted((64 * u).long().tolist()) == list(range(64))
    assert not torch.equal(u, u.sort().values)
