"""Several processes: the numbers of one, continuation after every way to stop, shared samples."""

import contextlib
import functools
import os
import shutil
import signal
import socket
import time

import pytest
import tiny
import tiny_classifier
import torch
from commands import command
from forks import torchrun
from test_checkpoints import assert_equal

import cli
import run_lib
from run_lib_sampling import sample
from storage import checkpoints
from storage.workdir import Workdir
from training.classifier import ClassifierTraining
from utils import UserError, seed_default_generators

# Ten steps of each kind; dropout's masks depend on the number of processes.
STEPS = {"training__n_iters": 10, "model__dropout": 0.0}
RUNS = {
    "dsm": STEPS,
    "qc": {**STEPS, "loss__balancing_fac": 0.1, "loss__slices": 2},
    "microbatches": {**STEPS, "training__microbatch": 3},
    "compiled": {**STEPS, "loss__balancing_fac": 0.1, "compute__compile": True},
}


def train_everything(cache, ports):
    """What each process does.

    Ten steps of each kind, with the batch norms' statistics of all rows; a run in one go; the same,
    stopped by a signal that only one process gets; the same, killed.
    """
    train = functools.partial(train_again, ports)
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    for name, more in RUNS.items():
        train(tiny.config(cache, **more), f"two/{name}")
    config = tiny_classifier.config("classifier", cache, **STEPS)
    train(config, "two/classifier", make_job=ClassifierTraining)
    train(tiny.config(cache), "two/whole")
    rank = os.environ["RANK"]
    try:
        train(tiny.config(cache, seed=int(rank)), "two/disagreeing")
    except UserError as error:
        print(error)

    train_one, events = run_lib.training_step, {4: signal.SIGTERM}

    def training_step(state, *arguments):
        number = events.pop(state.step, None)
        if number and rank == "1":
            os.kill(os.getpid(), number)
        return train_one(state, *arguments)

    run_lib.training_step = training_step
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        train(tiny.config(cache), "two/stopped")
    train(tiny.config(cache), "two/stopped")
    events[5] = signal.SIGKILL
    with contextlib.suppress(RuntimeError):  # of the process that loses the killed one
        train(tiny.config(cache), "two/killed")
    time.sleep(60)  # it is ended long before, once the other's death is seen


def go_on(cache, ports):
    """After that: the killed run again, and samples."""
    train_again(ports, tiny.config(cache), "two/killed")
    draw(cache)


def train_again(ports, *arguments, **options):
    """`run_lib.train`, for which a process may not meet the others twice at one of the `ports`."""
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ["MASTER_PORT"] = ports.pop()
    run_lib.train(*arguments, **options)


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def draw(cache):
    """Samples of two runs: in three divisions of two rounds, and ten classes of two rounds."""
    sample(tiny.config(cache, eval__batch_size=6, eval__num_samples=25), "two/dsm")
    sample(tiny_classifier.config("guided", cache), "two/classifier", range(10))


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The data cache of a directory, the present one, where all runs have been made.

    Those under "one" are of one process, those under "two" of two.
    """
    here = tmp_path_factory.mktemp("distributed")
    cache = here / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        tiny_classifier.train_score(cache)
        for name, more in RUNS.items():
            run_lib.train(tiny.config(cache, **more), f"one/{name}")
        tiny_classifier.train(cache, "one/classifier", **STEPS)
        done = torchrun(train_everything, cache, free_ports(10))
        (here / "stdout.txt").write_text(done.stdout)
        assert "Signal 9 (SIGKILL)" in done.stderr, done.stderr
        assert checkpoints.read(Workdir("two/killed").resume_point)["step"] == 4
        done = torchrun(go_on, cache, free_ports(1))
        assert done.returncode == 0, done.stderr
        yield cache


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, "classifier"])
def test_ten_steps_are_those_of_one_process(cache, name):
    """To 1e-5 of the way that the weights have gone; so are all running statistics."""
    ours, theirs = tiny.newest(f"two/{name}"), tiny.newest(f"one/{name}")
    assert ours["step"] == theirs["step"] == 10
    assert ours["position"] == theirs["position"]
    if name == "classifier":
        config, make = tiny_classifier.config("classifier", cache), ClassifierTraining
    else:
        config, make = tiny.config(cache, **RUNS[name]), run_lib.ScoreTraining
    seed_default_generators("weights", config.seed)
    start = make(config, torch.device("cpu")).model.state_dict()
    error = way = 0.0
    for key, value in theirs["model"].items():
        error += (ours["model"][key] - value).double().square().sum()
        way += (value - start[key]).double().square().sum()
    assert error.sqrt() <= 1e-5 * way.sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stopped", "killed"])
def test_a_run_continues_bit_for_bit(cache, name):
    """After SIGTERM to one of the processes, and after SIGKILL; with dropout."""
    assert_equal(tiny.newest("two/whole"), tiny.newest(f"two/{name}"))


@pytest.mark.slow
def test_processes_that_disagree_say_so(cache):
    """Each of them, and nothing is trained."""
    said = "Process 1 differs from process 0 in config.seed."
    assert (cache.parent / "stdout.txt").read_text().count(said) == 2
    assert not Workdir("two/disagreeing").resume_point.exists()


@pytest.mark.slow
def test_samples_are_those_of_one_process(cache, monkeypatch):
    """The same files from two processes at once, from one, and from three."""
    folders = [Workdir("two/dsm").root / "eval_sampling"]
    folders += [Workdir("two/classifier").root / "eval_samples"]
    two = [files(folder) for folder in folders]
    assert [len(found) for found in two] == [12, 40]  # a picture beside each
    for size in (1, 3):
        for folder in folders:
            shutil.rmtree(folder)
        monkeypatch.setenv("WORLD_SIZE", str(size))
        for rank in range(size):
            monkeypatch.setenv("RANK", str(rank))
            draw(cache)
        assert [files(folder) for folder in folders] == two


def test_a_batch_that_does_not_divide_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    cache = tmp_path / "cache"
    done = command("main.py --workdir run", tmp_path, tiny.arguments(cache))
    tiny.check_sentence(done, "training.batch_size")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("rank", [None, 1])
def test_a_mistake_is_printed_once(rank):
    """By rank 0 where all find it, else by the process that does."""
    done = torchrun(fail_in, rank)
    assert done.stderr.count("Error: no data") == 1


def fail_in(rank):
    cli.WAIT_FOR_RANK_0 = 30 if rank is None else 0
    if rank in (None, int(os.environ["RANK"])):
        cli.fail("no data")
    time.sleep(30)
