"""The shell scripts: their commands exist, and Slurm's tell the processes apart."""

import itertools
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny

from scripts import recognise
from storage.files import save_npz

SCRIPTS = sorted((tiny.ROOT / "scripts").glob("*.sh"))
DEMOS = [path for path in SCRIPTS if not path.name.startswith(("slurm", "stages"))]


def run(script, cwd, *arguments, **environment):
    done = subprocess.run(
        ["bash", str(cwd / "scripts" / script), *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", DEMOS, ids=lambda path: path.name)
def test_commands_exist_and_stages_are_numbered(script, tmp_path):
    """The commands are printed in place of being run."""
    shutil.copytree(tiny.ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/fashion_mnist.pth").touch()
    lines = [line for line in run(script.name, tmp_path, PYTHON="echo +").splitlines() if line]
    stages = [re.match(r"\[(\d+)/(\d+)\] \w", line) for line in lines if line.startswith("[")]
    count = f"{len(stages)}"
    assert [m.groups() for m in stages] == [(f"{i + 1}", count) for i in range(len(stages))]
    commands = [re.sub(r"-m (\w+)\.(\w+)", r"\1/\2.py", line) for line in lines if line[0] == "+"]
    assert commands
    for line in commands:
        _, name, *arguments = line.split()
        assert (tiny.ROOT / name).is_file(), name
        configs = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
        assert all((tiny.ROOT / config).is_file() for config in configs)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("slurm_train.sh", "--nnodes=2 --nproc_per_node=4 .*main.py --workdir W"),
        ("slurm_sample.sh", "--nproc_per_node=4 .*--num_divisions 3 --division_idx 2 --workdir W"),
    ],
)
def test_slurm_starts_torchrun(script, said, tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\necho $@\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho there\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    job = {"JOB_ID": "1", "JOB_NODELIST": "there", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "4"}
    job |= {"ARRAY_TASK_COUNT": "3", "ARRAY_TASK_ID": "7", "ARRAY_TASK_MIN": "5"}
    environment = {f"SLURM_{name}": value for name, value in job.items()}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    assert re.search(said, run(script, tiny.ROOT, "--workdir", "W", **environment))


def test_samples_of_classes_are_compared_with_their_class(tmp_path, monkeypatch, capsys):
    train, test = recognise.datasets.load_both(recognise.digits.get_config().data)
    for label in range(10):
        images = train.images[train.labels == label][:5].transpose(0, 2, 3, 1)
        save_npz(tmp_path / f"eval_samples/{label}/samples_0.npz", samples=np.array(images))
    recognise.main([str(tmp_path / "eval_samples")])
    *_, real, drawn = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    assert real[1:3] == [f"{len(test.labels)}", "94.2%"]
    assert drawn[1] == "50"
    assert drawn[3] == "100.0% |"
    recorded = json.loads((tmp_path / "metrics.json").read_text())["recognised"]
    assert (recorded["as_asked"], recorded["settings"]["generated"]) == (1.0, 50)
    assert f"{recorded['real_recognised']:.1%}" == "94.2%"
