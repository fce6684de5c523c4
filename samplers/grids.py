"""Grids of noise levels: `steps` descending positive floats and 0, so that the last step denoises.

A noise level σ is the ratio std/scale of x_t = scale·x + std·z, so that x_t/scale is data with
noise of this scale under every SDE (`SDE.noise_level`). Grids are lists of floats on the host, so
that samplers branch on them without synchronising a device.
"""

from collections.abc import Callable

from sde_lib import SDE


def karras(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> list[float]:
    """σ^(1/ρ) in equal steps from σmax to σmin (Karras et al. 2022, eq. 5), and 0."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(first + part * (last - first)) ** rho for part in _parts(steps)] + [0.0]


def geometric(sigma_min: float, sigma_max: float, steps: int) -> list[float]:
    """σ in equal ratios from σmax to σmin, and 0.

    Uniform in the log-SNR, log(scale²/std²) = −2 log σ, for every SDE; for VE uniform in t too.
    """
    return [sigma_max * (sigma_min / sigma_max) ** part for part in _parts(steps)] + [0.0]


GRIDS = {"karras": karras, "geometric": geometric}
"""Name -> grid."""


def of_sde(
    sde: SDE, steps: int, grid: Callable[[float, float, int], list[float]] = karras
) -> list[float]:
    """The `grid` of `steps` levels from the SDE's noise level at T to the one at sampling_eps."""
    return grid(sde.noise_level(sde.sampling_eps), sde.noise_level(sde.T), steps)


def _parts(steps):
    """0 to 1 in `steps` equidistant floats."""
    return [i / max(steps - 1, 1) for i in range(steps)]
