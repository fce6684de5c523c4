"""Speed in the training log, and a profiler's trace."""

import json

import tiny

import report
import run_lib
from storage.workdir import Workdir


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
