"""The device on which networks, losses, samplers and likelihoods are tested.

`DEVICE` is what ``pytest --device`` names, "cpu" without it; conftest.py sets it before any test is
imported. Commands and what they leave are tested on the CPU whatever it is.
"""

DEVICE = "cpu"
