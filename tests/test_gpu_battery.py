"""benchmarks/gpu.sh: its pieces' commands, and one of them in small."""

import os
import re
import subprocess
import sys

import pytest
import tiny
import torch

from benchmarks import rates, speed
from configs.demo import cifar10_gpu

SCRIPT = tiny.ROOT / "benchmarks/gpu.sh"
PIECES = ["rates", "dsm", "qc", "dlsm", "sampling", "nll", "train", "samples"]


def run(*arguments, out, python, limit=540):
    environment = {"PYTHON": python, "OUT": str(out), "LIMIT": str(limit), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("small", [[], ["--small"]], ids=["full", "small"])
def test_the_commands_of_all_pieces_exist(tmp_path, small):
    """They are printed in place of being run; each row is also in the file."""
    done = run(*small, out=tmp_path / "out", python="echo +")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/rows.md").read_text() == done.stdout
    assert list(dict.fromkeys(re.findall(r"^# (\w+)$", done.stdout, re.MULTILINE))) == PIECES
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    fields = {}
    for line in lines:
        script = re.match(r"\+ (?:-m (\S+)|(\S+))", line)
        path = script[1].replace(".", "/") + ".py" if script[1] else script[2]
        assert (tiny.ROOT / path).is_file()
        ways = speed.WAYS["cpu" if small else "cuda"]
        for way in re.findall(r"--ways (.*?) --(?:device|only)", line):
            assert way in ways
        for job in re.findall(r"--only (.*?) --", line):
            assert all(name in job for name in speed.NETWORK_JOBS) or job in {
                *speed.NETWORK_JOBS,
                " ".join(rates.RUNS),
            }
        fields |= dict(re.findall(r"--config\.(\S+)=(\S+)", line))
    config = cifar10_gpu.get_config()
    for name in fields:
        section, _, field = name.rpartition(".")
        assert field in (config[section] if section else config)
    if not small:
        asked = [re.search(r"--ways (.*?) --", line) for line in lines]
        assert {match[1] for match in asked if match} == speed.WAYS["cuda"].keys()


def test_an_unknown_piece_gets_a_sentence(tmp_path):
    done = run("dsm", "qcc", out=tmp_path, python="echo +")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Error: there is no piece qcc; expected some of: rates dsm" in done.stderr


def test_a_piece_that_fails_leaves_a_row(tmp_path):
    done = run("dsm", "nll", out=tmp_path, python="false")
    assert done.returncode == 1
    rows = (tmp_path / "rows.md").read_text()
    assert rows.count("| status 1 of: -m benchmarks.speed") == 10


def test_only_training_may_run_out_of_time(tmp_path):
    """It is made to: it goes on the next time."""
    endless = tmp_path / "endless.sh"
    endless.write_text("exec sleep 60")
    done = run("train", out=tmp_path / "train", python=f"bash {endless}", limit=1)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "# train\n"
    done = run("dlsm", out=tmp_path / "dlsm", python=f"bash {endless}", limit=1)
    assert done.returncode == 1
    assert "| dlsm | status 143 of: -m benchmarks.speed" in done.stdout
    assert done.stdout.count("| no time was left for: -m benchmarks.speed") == 4


def test_a_piece_in_small(tmp_path):
    done = run("--small", "dsm", out=tmp_path, python=sys.executable)
    assert done.returncode == 0, (tmp_path / "log.txt").read_text()
    row = re.search(r"^\| DSM step \| fp32 (\| [\d.]+ ){6}\|$", done.stdout, re.MULTILINE)
    assert row, done.stdout


def test_flops_are_those_of_the_convolutions():
    """A convolution's, forward and backward; and of a job, in parts of the published size."""
    layer = torch.nn.Conv2d(3, 4, 3, padding=1)
    x = torch.rand(2, 3, 8, 8)
    forward = 2 * 2 * 8 * 8 * 4 * 3 * 9
    assert rates.flops(lambda: layer(x)) == forward
    assert rates.flops(lambda: layer(x).sum().backward()) == 2 * forward  # x needs no gradient
    bench = speed.tiny(torch.device("cpu"))
    ((name, way, seconds, count, rate),) = rates.rows(bench, ["PC sampling"], ["fp32"])
    assert (name, way) == ("PC sampling", "fp32")
    once = rates.flops(speed.NETWORK_JOBS["PC sampling"](bench, speed.BASELINE, False))
    assert count == once > 0
    assert min(seconds, rate) > 0


@pytest.mark.parametrize("name", ["QC step", "DLSM step"])
def test_steps_that_differentiate_within_are_counted(name):
    """Where PyTorch's own counter fails."""
    ((_, _, _, count, _),) = rates.rows(speed.tiny(torch.device("cpu")), [name], ["fp32"])
    assert count > 0


def test_hours_are_those_of_the_papers_run():
    bench = speed.published(torch.device("cpu"))
    assert rates.hours("DSM step", 1.0, bench) == pytest.approx(950_001 / 3600)
    assert rates.hours("PC sampling", 3.6, bench) == pytest.approx(50_000 * 100 * 3.6 / 128 / 3600)
