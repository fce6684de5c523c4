"""Puts the repository's root and this directory on the import path, and keeps to one thread.

The suite runs in as many processes as there are cores; small networks gain nothing from more
threads, and threads that outnumber the cores wait for each other.
"""

import os
import pathlib
import sys

import hypothesis

os.environ["OMP_NUM_THREADS"] = "1"

sys.path[:0] = [str(pathlib.Path(__file__).parent.parent), str(pathlib.Path(__file__).parent)]

# `make test` draws few inputs, the same ones each time; --hypothesis-profile=soak draws many.
hypothesis.settings.register_profile(
    "test",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile(
    "soak", hypothesis.settings.get_profile("test"), max_examples=400, derandomize=False
)
hypothesis.settings.load_profile("test")


def pytest_terminal_summary(terminalreporter):
    """Print what the hostile inputs came to, where this process has read any."""
    tally = getattr(sys.modules.get("strangers"), "TALLY", {})
    if tally:
        terminalreporter.section("malformed inputs")
    for reader, (inputs, refused, peak) in sorted(tally.items()):
        terminalreporter.line(
            f"{reader}: {inputs} inputs, {refused} refused, peak memory {peak / 2**20:.0f} MiB"
        )
