"""The demos' scripts: their stages, their commands, and what they need."""

import itertools
import os
import re
import shutil
import subprocess

import pytest
import tiny

from configs.demo import digits
from samplers.fast import SAMPLERS

SCRIPTS = ["run.sh", "samplers.sh", "qc.sh", "dlsm.sh"]
GOING_ON = ["samplers.sh", "qc.sh", "dlsm.sh"]  # from the score model of the first


@pytest.fixture
def place(tmp_path):
    """A directory with the scripts and the score model that make demo leaves."""
    shutil.copytree(tiny.ROOT / "demo", tmp_path / "demo")
    model = tmp_path / "results/demo/checkpoints/checkpoint.pth"
    model.parent.mkdir(parents=True)
    model.touch()
    return tmp_path


def run(script, place):
    """Run a script whose commands are printed in place of being run."""
    return subprocess.run(
        ["bash", str(place / "demo" / script)],
        env=dict(os.environ, PYTHON="echo +"),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_stages_are_numbered_and_their_commands_exist(script, place):
    """Each stage starts with its number of how many there are, and the last is the report."""
    done = run(script, place)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    numbers = [re.match(r"\[(\d+)/(\d+)\] \w", line) for line in lines if line.startswith("[")]
    count = len(numbers)
    assert [match.groups() for match in numbers] == [(f"{i + 1}", f"{count}") for i in range(count)]
    commands = [line.split()[1:] for line in lines if line.startswith("+ ")]
    assert commands[-1][0] == "report.py"
    for name, *arguments in commands:
        assert (tiny.ROOT / name).is_file()
        configs = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
        assert all((tiny.ROOT / config).is_file() for config in configs)


def test_all_draws_are_recognised_and_compared(place):
    """Of the three samplers, the fast one at 25 evaluations."""
    commands = [line.split()[1:] for line in run("samplers.sh", place).stdout.splitlines()]
    draws = [command for command in commands if command[:1] == ["run_lib_sampling.py"]]
    fast = next(command for command in draws if "--sampler" in command)
    name, steps = (fast[fast.index(flag) + 1] for flag in ("--sampler", "--steps"))
    assert SAMPLERS[name].nfe(int(steps)) == 25
    recognised = [command[1] for command in commands if command[:1] == ["demo/recognise.py"]]
    root = "results/demo/eval_sampling"
    assert sorted(recognised) == sorted([root, f"{root}_ode", f"{root}_{name}"])
    compared = [command for command in commands if command[:1] == ["run_lib_evaluation_fidis.py"]]
    assert len(draws) == len(compared) == 3
    assert sum(f"--sampler {name}" in " ".join(command) for command in compared) == 1


@pytest.mark.parametrize("script", GOING_ON)
def test_the_score_model_is_trained_to_the_end_first(script, place):
    """Further than the first demo trains it, by the same command without its limit."""
    first, then = (
        next(line.split()[1:] for line in run(name, place).stdout.splitlines() if "main.py" in line)
        for name in ("run.sh", script)
    )
    assert then == first[:-1]
    limit = int(first[-1].removeprefix("--config.training.n_iters="))
    assert limit < digits.get_config().training.n_iters
