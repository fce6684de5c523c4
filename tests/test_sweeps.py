"""Metrics over all checkpoints: those of each alone, in a table and a plot."""

import csv
import functools

import numpy as np
import pytest
import tiny
from PIL import Image

import run_lib
import run_lib_sampling
from evaluation import SAMPLE_METRICS
from metrics import encoding, feature_classifier, feature_sets, frechet
from storage.workdir import Workdir
from sweeps import checkpoints
from utils import UserError

FID = SAMPLE_METRICS[0]


def test_every_checkpoint_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    briefly = functools.partial(feature_classifier.train_small_classifier, steps=3)
    monkeypatch.setattr(feature_classifier, "train_small_classifier", briefly)
    config = tiny.config(tmp_path / "cache", training__snapshot_freq=2, training__n_iters=6)
    run_lib.train(config, "run")
    encoding.encode_dataset(config, "run")
    checkpoints.measure(config, "run", [FID])
    folder = tmp_path / "results/run/over_checkpoints"
    with open(folder / "fid_is.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["checkpoint", "step", "fid", "is"]
    assert [row[:2] for row in rows] == [["1", "2"], ["2", "4"], ["3", "6"]]
    assert Image.open(folder / "fid_is.png").size[0] > 500

    config.eval.checkpoint_idx = 2
    run_lib_sampling.sample(config, "run")
    encoding.encode_samples(config, "run")
    real, fake = feature_sets.open_sets(config, "run")
    assert float(rows[1][2]) == pytest.approx(frechet.frechet_distance(real.pool, fake.pool))
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("samples_*.npz")}
    assert len(files) == 9
    checkpoints.measure(config, "run", [FID])
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_the_best_is_named():
    values = [(1, 10, 5.0), (2, 20, 3.0), (10, 100, 4.0)]  # of features without logits
    rows = [dict(zip(("checkpoint", "step", "fid"), each, strict=True)) for each in values]
    assert "3, is of checkpoint 2, step 20" in checkpoints.best_of(FID, rows)
    assert np.array(checkpoints.plot(FID, rows).axes[0].lines[0].get_xdata()).tolist() == [
        10, 20, 100
    ]  # fmt: skip


def test_without_checkpoints_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Workdir("run").create()
    with pytest.raises(UserError, match=r"holds no checkpoint_N\.pth"):
        checkpoints.measure(tiny.config(tmp_path / "cache"), "run", [FID])
