"""The suite's own settings."""

import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent


def cache_of(worker):
    """The directory of compiled code that a process of the suite gives PyTorch."""
    script = "import conftest, os; print(os.environ.get('TORCHINDUCTOR_CACHE_DIR'))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TORCH"))}
    environment |= {"PYTEST_XDIST_WORKER": worker} if worker else {}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_processes_share_no_compiled_code():
    assert len({cache_of(worker) for worker in ("gw0", "gw1")}) == 2
    assert cache_of(None) == "None"


def test_a_device_that_is_not_there_gets_a_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--device", "tpu", "--collect-only", str(TESTS)],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "ERROR: --device: " in done.stderr
    assert "expected auto, cpu, cuda or cuda:N" in done.stderr
