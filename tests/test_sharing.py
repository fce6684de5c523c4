"""Evaluation by several processes: the files and numbers of one, and no waiting for the dead."""

import contextlib
import io
import os
import shutil
import sys

import pytest
import tiny
import tiny_classifier
from commands import brief_features
from drawn import draw
from faults import tree
from forks import torchrun

import evaluation
import run_lib
import run_lib_likelihood
from metrics import encoding, feature_classifier, feature_sets, sharing
from storage.workdir import Workdir
from utils import UserError, is_first


def score_config():
    return tiny.config(
        "cache",
        eval__batch_size=150,
        eval__noise_levels=2,
        eval__total_repeat=2,
        eval__atol=0.5,
        eval__rtol=0.5,
        eval__kid_subset_size=20,
    )


def evaluate():
    """Of the run W: all that is shared, and what comes after it."""
    config = score_config()
    run_lib_likelihood.calculate_nll(config, "W")
    run_lib_likelihood.calculate_asym(config, "W")
    encoding.encode_dataset(config, "W")
    encoding.encode_samples(config, "W")
    guided = tiny_classifier.config("guided", "cache", eval__batch_size=40)
    encoding.encode_dataset(guided, "W")
    encoding.encode_samples(guided, "W")
    if is_first():
        run_lib_likelihood.read_nll("W")
        run_lib_likelihood.read_asym("W")
        place, every = Workdir("W"), evaluation.SAMPLE_METRICS
        sets = feature_sets.open_sets(config, "W")
        evaluation.measure(every, config, *sets, place)
        evaluation.nfe(config, "W")
        sets = feature_sets.open_sets(guided, "W")
        evaluation.measure(every[:1], guided, *sets, place, mode="class")
        evaluation.nfe(guided, "W")


def evaluate_together(here):
    """What each process does; in the end one fails for which the others wait."""
    os.chdir(here)
    brief_features()
    evaluate()
    encoding.encode_samples(score_config(), "W")  # its features stand
    print("evaluated")
    rank = os.environ["RANK"]
    try:
        sharing.barrier(rank=int(rank))
    except UserError as error:
        print(error)
    if rank == "1":
        sys.exit(7)
    try:
        sharing.barrier()
    except UserError as error:  # Gloo's own means nothing to a user
        print(error)
        return
    print("unreachable")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a score model in the run W, and samples of both kinds."""
    here = tmp_path_factory.mktemp("sharing")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        run_lib.train(tiny.config("cache", training__n_iters=2), "W")
        draw(Workdir("W").root / "eval_sampling", 3, 30, 3, shape=(8, 8, 1))
        draw(Workdir("W").root / "eval_samples", 10, 30, 2, shape=(8, 8, 1))
    return here


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """The files of one process, and the lines that it printed."""
    here = tmp_path_factory.mktemp("alone") / "here"
    shutil.copytree(base, here)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(here)
        patch.setattr(
            feature_classifier, "train_small_classifier", feature_classifier.train_small_classifier
        )
        brief_features()
        evaluate()
    return tree(here), [line for line in said.getvalue().splitlines() if not dated(line)]


def dated(line):
    """Whether it is one of the log."""
    return line.startswith("20")


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_files_and_numbers_are_those_of_one_process(base, alone, tmp_path, processes):
    """Bits/dim, asymmetries, features, the network that these are of, metrics of all."""
    here = tmp_path / "here"
    shutil.copytree(base, here)
    done = torchrun(evaluate_together, here, processes=processes)
    said = done.stdout + done.stderr
    assert done.stdout.count("evaluated") == processes, said
    expected, printed = alone
    found = tree(here)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    # The first alone prints and logs.
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in printed] == printed
    for text, count in (("Wrote the results", 2), ("wrote 1 of 1", 3), ("wrote 0 of 1", 1)):
        assert done.stdout.count(text) == count, said  # a line may follow another's end
    # Then one ends, and torchrun ends the others.
    assert done.stdout.count("Process 1 differs from process 0 in rank") == processes
    assert "exitcode  : 7" in done.stderr
    assert "unreachable" not in done.stdout
