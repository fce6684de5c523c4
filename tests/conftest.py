"""Puts the repository's root and this directory on the import path."""

import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parent.parent), str(pathlib.Path(__file__).parent)]
