"""The studies of speed: launches that are counted, and both sides of every job."""

import itertools
import os
import pathlib
import resource
import subprocess
import sys
import time

import pytest
import tiny
import torch

from studies import gpu, jobs, launches, speed

CPU = torch.device("cpu")


class Sum(torch.nn.Module):
    """Ten operations between two library calls, the middle ones compiled."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8, 8))
        self.compiled = torch.compile(self.middle)

    def middle(self, x):
        return x * 2 + 1

    def forward(self, x):
        return self.compiled(x @ self.weight) @ self.weight


def counted(forward):
    counter = launches.Launches()
    with launches.pretended_gpu(counter):
        network = Sum().to("cuda")
        x = torch.ones(4, 8, device="cuda")
        counter.reset()
        forward(network, x)
    return counter


@torch.no_grad()
def middle(network, x):
    return network.middle(x.expand(16, 4, 8)[0].view(8, 4))


def test_launches_and_bytes_are_those_of_the_operations():
    """x is 128 bytes, the weight 256."""
    eager = counted(middle)
    assert (eager.launches, eager.bytes, eager.calls, eager.flops) == (2, 4 * 128, 0, 0)
    with torch.no_grad():
        compiled = counted(lambda network, x: network(x))
    assert (compiled.launches, compiled.calls, compiled.flops) == (3, 1, 2 * 2 * 4 * 8 * 8)
    assert compiled.bytes == 2 * (128 + 256 + 128) + 2 * 128


def test_a_compiled_function_has_its_gradient():
    """Forward 3, with the product's gradients 4 and the middle's 1; and the sum, its gradient."""
    trained = counted(lambda network, x: network(x).sum().backward())
    assert trained.calls == 2
    assert trained.flops == 5 * 2 * 4 * 8 * 8  # the input's gradient is not needed


@pytest.mark.slow
def test_compilation_saves_launches_and_bytes():
    bench, make = jobs.tiny(launches.GPU), launches.JOBS["DSM step"]
    eager, compiled = (launches.count(make, bench, way) for way in (jobs.EAGER, jobs.COMPILED))
    assert eager.launches > compiled.launches > 0
    assert eager.bytes > compiled.bytes > 0


BLOCKED = ("ml_collections", "tensorboard", "tensorflow", "prdc", "torch_fidelity", "sklearn")


@pytest.mark.slow
def test_the_battery_fills_every_row_without_the_missing_wheels(tmp_path):
    """On a CPU, with networks whose times mean nothing, and of the packages all but some."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in pathlib.Path(torch.__file__).parents[1].iterdir():
        if not path.name.startswith((*BLOCKED, "_", "easy-install")):
            (packages / path.name).symlink_to(path)
    file = tmp_path / "rows.md"
    command = [sys.executable, "-S", "-m", "studies.gpu", "--small", "--seconds", "3000"]
    command += ["--file", str(file)]
    environment = dict(os.environ, PYTHONPATH=str(packages), OMP_NUM_THREADS="1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Of the processor, which others may use as well.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 120
    written = file.read_text()
    rows = [line.strip("| ").split(" | ") for line in written.splitlines() if line[:2] == "| "]
    names = [row[0] for row in rows]
    for name in [*itertools.starmap(gpu.name_of, gpu.TIMED), "P/R/D/C of"]:
        assert any(row.startswith(name) for row in names), name
    assert all(cell for row in rows for cell in row)
    assert [row[-1] for row in rows if row[-1] in ("right", "WRONG")] == ["right"] * len(gpu.CHECKS)
    missing = written.splitlines()[0]
    assert "ml-collections" in missing
    assert "pillow" not in missing
    assert "failed" not in written
    assert "Left out" not in written


def test_what_the_battery_has_no_time_for_is_named(tmp_path, monkeypatch):
    def endless(battery):
        while True:
            time.sleep(0.01)

    def broken(battery):
        raise ValueError("no such thing")

    plan = {"broken": broken, "endless": endless, "last": endless}
    monkeypatch.setattr(gpu, "PLAN", plan)
    with open(tmp_path / "rows.md", "w") as file:
        gpu.run(gpu.Battery(CPU, jobs.tiny, 32, file), 0.2)
    broken, left = (tmp_path / "rows.md").read_text().split("\n\n")
    assert "broken" in broken
    assert "no such thing" in broken
    assert "endless; last" in left


@pytest.mark.slow
def test_both_sides_of_every_job_run(monkeypatch):
    """In seconds: sizes and repetitions whose numbers mean nothing."""
    monkeypatch.setattr(speed, "RUNS", 1)
    monkeypatch.setattr(speed, "WAYS", {"fp32": jobs.FP32})
    rows = list(speed.rows(jobs.tiny(CPU)))
    assert [row[:2] for row in rows] == [(name, "fp32") for name in speed.JOBS]
    assert all(seconds > 0 for *_, theirs, ours in rows for seconds, _ in (theirs, ours))
