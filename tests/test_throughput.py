"""Speed in the training log, a profiler's trace, and how much CAS validates."""

import json

import numpy as np
import pytest
import tiny
import torch

import datasets
import report
import run_lib
from configs import common
from storage.workdir import Workdir
from training.cas import CASTraining

CPU = torch.device("cpu")


def test_a_run_reports_its_speed_and_writes_a_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_lib.train(tiny.config("cache", training__profile_steps=2), "W")
    place = Workdir("W")
    steps, values = report.read_curves(place.tensorboard)["train/images_per_s"]
    assert list(steps) == [2, 4, 6, 8]
    assert min(values) > 0
    assert "images_per_s" in place.log_file.read_text()
    (path,) = place.tensorboard.glob("*.pt.trace.json")
    events = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    marked = {name for name in events if name.startswith("ProfilerStep#")}
    assert len(marked) == 2
    assert "aten::convolution" in events


@pytest.mark.parametrize("eval_freq", [200, 2])
def test_cas_validates_two_percent_of_its_passes(eval_freq):
    """As published, 1,800 images every 200 steps of 150; never fewer than the loop's own."""
    config = common.dlsm_cas(common.CIFAR10, "resnet18_cond")
    config.cas.model, config.training.eval_freq = "small_cnn", eval_freq
    images = np.zeros((3000, 3, 8, 8), np.uint8)
    test = datasets.Split(images, np.arange(3000) % 10, 10)
    job = CASTraining(config, CPU, test, test)
    seen = []
    job.model.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    batch = datasets.fixed_batch(test, 128, 0)
    right = job.validate(*batch, test, lambda: None)["accuracy"]
    assert sum(seen) == {200: 1800, 2: 128}[eval_freq]
    assert 0 < right < 0.3
