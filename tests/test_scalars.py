"""Scalars as a table and for Weights & Biases."""

import csv
import sys
import types

import pytest
import tiny

import run_lib
from storage.scalars import TableWriter
from storage.workdir import Workdir
from utils import UserError


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_what_is_after_the_resume_point_is_written_anew(tmp_path):
    path = tmp_path / "scalars.csv"
    writer = TableWriter(path, purge_step=1)
    for step in (1, 2, 3):
        writer.add_scalar("train/loss", 0.5 * step, step)
    writer.close()
    with open(path, "a") as file:
        file.write("3,train/lo")  # a crash
    writer = TableWriter(path, purge_step=3)
    writer.add_scalar("train/loss", 9.0, 3)
    writer.close()
    expected = [["1", "train/loss", "0.5"], ["2", "train/loss", "1.0"], ["3", "train/loss", "9.0"]]
    assert rows(path) == [["step", "name", "value"], *expected]


def test_training_writes_the_table_and_sends_it_where_asked(tmp_path, monkeypatch):
    """A stub stands for wandb."""
    monkeypatch.chdir(tmp_path)
    sent, starts, ends = [], [], []
    run = types.SimpleNamespace(
        log=lambda values, step: sent.append((step, values)), finish=lambda: ends.append(1)
    )
    stub = types.ModuleType("wandb")
    stub.init = lambda **settings: starts.append(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", stub)
    config = tiny.config(tmp_path / "cache", training__n_iters=4)
    config.training.wandb_project = "digits"
    run_lib.train(config, "run")
    header, *table = rows(Workdir("run").scalars)
    assert header == ["step", "name", "value"]
    assert {int(step) for step, _, _ in table} == {2, 4}
    assert {"train/loss", "train/grad_norm", "test/loss"} <= {name for _, name, _ in table}
    pairs = [(step, *pair) for step, values in sent for pair in values.items()]
    assert [(str(step), name, str(value)) for step, name, value in pairs] == list(map(tuple, table))
    assert starts[0]["project"] == "digits"
    assert starts[0]["name"] == "run"
    assert starts[0]["config"]["training"]["n_iters"] == 4
    assert ends == [1]


def test_without_the_package_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny.config(tmp_path / "cache")
    config.training.wandb_project = "digits"
    with pytest.raises(UserError, match="wandb is not installed"):
        run_lib.train(config, "run")
    assert not list(tmp_path.iterdir())
