"""The job scripts: their syntax, and their torchrun lines on two processes, without Slurm."""

import os
import socket
import subprocess
import sys

import pytest
import tiny
from test_run_lib import cache  # noqa: F401 (a fixture)

from storage.workdir import Workdir

SCRIPTS = sorted((tiny.ROOT / "slurm").glob("*.sh"))
STUBS = {
    # Each of the job's nodes runs the command; here all are this machine.
    "srun": 'for _ in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & done; wait -n; wait',
    "scontrol": "echo localhost",
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
}


@pytest.fixture
def submit(tmp_path):
    """Runs a job script as Slurm would, in the repository's root."""
    for name, body in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(script, *arguments, **environment):
        done = subprocess.run(
            ["bash", str(tiny.ROOT / "slurm" / script), *arguments],
            cwd=tiny.ROOT,
            env={
                **os.environ,
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
                "SLURM_JOB_ID": "1",
                "SLURM_JOB_NODELIST": "here",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_training_on_two_nodes_and_divisions_as_an_array(tmp_path, cache, submit):  # noqa: F811
    place = Workdir(str(tmp_path / "run"))
    tiny_run = [*tiny.arguments(cache, training__n_iters=2), f"--workdir={place.name}"]
    submit("train.sh", *tiny_run, SLURM_JOB_NUM_NODES="2", PORT=str(free_port()))
    assert place.checkpoint().exists()
    submit(
        "sample.sh",
        *tiny_run,
        "--num_samples=6",
        "--bs=2",
        SLURM_JOB_NUM_NODES="1",
        SLURM_GPUS_ON_NODE="2",
        SLURM_ARRAY_TASK_COUNT="2",
        SLURM_ARRAY_TASK_ID="1",
    )
    folders = [place.division(index, "") for index in (0, 1)]
    assert [len(list(folder.glob("samples_*.npz"))) for folder in folders] == [0, 2]
