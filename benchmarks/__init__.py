"""What things cost and what they are worth: ``python -m benchmarks.NAME``."""

import pathlib
import sys

# The oracles that they measure against are the tests'.
sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests"))
