"""The samplers against other packages', as tests/oracles/make_samplers.py has stored them.

Float64 and a network in float32, points and images, levels of unequal ratios.
"""

import functools
import pathlib

import numpy as np
import pytest
import torch
from oracles.problems import CHURN, PROBLEMS, SIGMAS, Noise

from samplers.fast import SAMPLERS
from samplers.stochastic import churn

FOLDER = pathlib.Path(__file__).parent / "golden_samplers"

FUNCTIONS = SAMPLERS | {"churn": functools.partial(churn, **CHURN)}

# What the packages leave out: the step to 0, see make_samplers.py.
WITHOUT_LAST = {"deis", "unipc", "dpmpp_3m"}

CASES = [
    (path.stem, name)
    for path in sorted(FOLDER.glob("*.npz"))
    for name in np.load(path).files
    if name != "version"
]


@pytest.mark.parametrize(("file", "name"), CASES)
def test_samples_are_those_of_other_packages(file, name):
    problem = PROBLEMS[file.rsplit("_", 1)[1]]
    sigmas = SIGMAS if name in WITHOUT_LAST else [*SIGMAS, 0.0]
    ours = FUNCTIONS[name](problem.denoiser, problem.start(), sigmas, Noise(1).randn_like)
    theirs = torch.from_numpy(np.load(FOLDER / f"{file}.npz")[name])
    assert (ours - theirs).abs().max() < 1e-5 * theirs.std()


def test_every_sampler_is_compared():
    assert {name for _, name in CASES} == set(SAMPLERS)
    assert len(CASES) == 2 * 10
