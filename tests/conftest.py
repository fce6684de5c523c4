"""Puts the repository's root and this directory on the import path, and keeps to one thread.

The suite runs in as many processes as there are cores; small networks gain nothing from more
threads, and threads that outnumber the cores wait for each other. Each process has a cache of
compiled code of its own: two that compile at once can break each other's.
"""

import os
import pathlib
import sys
import tempfile

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(
        os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir()),
        f"torchinductor_{os.getuid()}_{os.environ['PYTEST_XDIST_WORKER']}",
    )

sys.path[:0] = [str(pathlib.Path(__file__).parent.parent), str(pathlib.Path(__file__).parent)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The data cache of all tests of the tiny configurations."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory, the present one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cpu",
        help="Where networks, losses, samplers and likelihoods are tested: cpu, cuda, cuda:N.",
    )


def pytest_configure(config):
    """Set the device of `device_option`; on a GPU float32 products keep all their bits."""
    import device_option
    import torch

    import utils

    try:
        device_option.DEVICE = str(utils.get_device(config.getoption("--device")))
    except utils.UserError as error:
        raise pytest.UsageError(f"--device: {error}") from None
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
