"""Speed in the training log, a profiler's trace, and how much CAS validates."""

import json
import time

import numpy as np
import pytest
import tiny
import torch

import datasets
import planning
import report
import run_lib
from configs import common
from storage.workdir import Workdir
from training import throughput
from training.cas import CASTraining
from training.score import ScoreTraining

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


def test_pauses_are_not_training(monkeypatch):
    job = ScoreTraining(tiny.config("cache"), CPU)
    meter = throughput.Throughput(job, 10)
    with meter.paused():
        time.sleep(0.5)
    time.sleep(0.05)
    speed = meter.report(12)["images_per_s"]
    assert 2 * 16 / 0.5 < speed < 2 * 16 / 0.05


def test_a_step_has_the_flops_of_the_dry_run():
    job = ScoreTraining(tiny.config("cache"), CPU)
    assert throughput.flops_of_an_image(job) == planning.step_of(job, 2)[0] > 0


def test_the_matrix_rate_is_a_product_in_its_time(monkeypatch):
    clock = iter([1.0, 3.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert throughput.matrix_rate(CPU, torch.float32, repeats=4) == 4 * 2 * 512**3 / 2


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
