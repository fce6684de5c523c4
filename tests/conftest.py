"""Puts the repository's root and this directory on the import path, and keeps to one thread.

The suite runs in as many processes as there are cores; small networks gain nothing from more
threads, and threads that outnumber the cores wait for each other.
"""

import os
import pathlib
import sys

os.environ["OMP_NUM_THREADS"] = "1"

sys.path[:0] = [str(pathlib.Path(__file__).parent.parent), str(pathlib.Path(__file__).parent)]
