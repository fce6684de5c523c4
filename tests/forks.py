"""Functions called in forked processes, which have everything imported already."""

import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import uuid

from commands import Done
from torch.distributed.launcher import api

LIMIT = 120
"""Seconds that a function may take."""


def in_a_fork(function, *arguments):
    """The exit status of a forked process that calls a function; -SIGTERM after `LIMIT`."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(LIMIT)
    process.terminate()
    process.join()
    return process.exitcode


def torchrun(function, *arguments, processes=2):
    """Call a function in several processes, as torchrun runs a script: a `Done`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ("stdout", "stderr")]
        status = in_a_fork(_launch, files, processes, function, arguments)
        return Done(status, *(path.read_text() for path in files))


def _launch(files, processes, function, arguments):
    for number, path in enumerate(files, 1):
        file = open(path, "w", buffering=1)  # noqa: SIM115 (until the process ends)
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    config = api.LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    api.elastic_launch(config, _work)(function, arguments)


def _work(function, arguments):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's handler is no script's
    function(*arguments)
