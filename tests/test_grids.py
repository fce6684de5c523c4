"""Grids of noise levels: the papers' formulas, their ends, and what SDEs make of them."""

import math

import numpy as np
import pytest
from mixture import each_sde

from samplers import grids


@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize("name", sorted(grids.GRIDS))
def test_grids_descend_from_the_largest_to_the_smallest_and_0(name, steps):
    sigmas = grids.GRIDS[name](0.002, 80.0, steps)
    assert len(sigmas) == steps + 1
    assert all(type(sigma) is float for sigma in sigmas)
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(80, rel=1e-14)
    if steps > 1:
        assert sigmas[-2] == pytest.approx(0.002, rel=1e-13)


def test_the_karras_grid():
    """(σmax^(1/ρ) + i/(N−1)·(σmin^(1/ρ) − σmax^(1/ρ)))^ρ."""
    i = np.arange(18)
    theirs = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.karras(0.002, 80.0, 18)[:-1], theirs, rtol=1e-12)
    np.testing.assert_allclose(grids.karras(1.0, 9.0, 5, rho=1.0), [9, 7, 5, 3, 1, 0])


@each_sde
def test_the_geometric_grid_is_uniform_in_the_log_snr(sde):
    """With scale and std taken from the SDE, at its own times."""
    sigmas = grids.of_sde(sde, 11, grids.geometric)
    times = [sde.time(sigma) for sigma in sigmas[:-1]]
    log_snr = [2 * math.log(scale / std) for scale, std in map(sde.scale_and_std, times)]
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / 10, rtol=1e-9)
