"""The demos' scripts: their stages, their commands, and what they need."""

import itertools
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import tiny

SCRIPTS = ["run.sh", "qc.sh", "dlsm.sh"]
GOING_ON = ["qc.sh", "dlsm.sh"]  # from the score model of the first


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


@pytest.mark.parametrize("script", GOING_ON)
def test_without_the_score_model_there_is_a_sentence(script, place):
    """And no command is run."""
    pathlib.Path(place, "results/demo/checkpoints/checkpoint.pth").unlink()
    done = run(script, place)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "run make demo first" in done.stderr
