"""Samplers that add noise on the way, which reduces the errors of earlier steps.

Functions of the same form as those of `deterministic`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch

from samplers import grids
from samplers.deterministic import Denoising, NoiseLike, extrapolated, heun, heun_step, no_callback
from utils import UserError


@torch.no_grad()
def churn(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
    s_churn: float = 80.0,
    s_tmin: float = 0.05,
    s_tmax: float = 1.0,
    s_noise: float = 1.007,
) -> torch.Tensor:
    """The stochastic sampler of Karras et al. (2022), algorithm 2.

    The defaults are theirs for the VE NCSN++ on CIFAR-10 (table 5). With s_tmax above sigmas[0]/√2
    the denoiser is asked at noise levels above sigmas[0].
    """
    most = min(s_churn / max(len(sigmas) - 1, 1), math.sqrt(2) - 1)
    for sigma, following in itertools.pairwise(sigmas):
        gamma = most if s_tmin <= sigma <= s_tmax else 0.0
        raised = sigma * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * s_noise * randn_like(x)
        x = heun_step(denoiser, x, raised, following)
        callback()
    return x


@torch.no_grad()
def dpmpp_2m_sde(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
    eta: float = 1.0,
) -> torch.Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095): 2M for the reverse SDE.

    In σ as time, dx = −(1 + η)·σ·s dσ + √(2ησ) dw: the probability flow and η times a Langevin
    diffusion (Karras et al. 2022, eq. 6). η = 1 is the reverse SDE, more than that its predictor
    and a corrector in one.
    """
    previous = None
    for sigma, following in itertools.pairwise(sigmas):
        D = denoiser(x, sigma)
        kept = (following / sigma) ** (1 + eta)  # e^{−(1+η)h}
        x = kept * x + (1 - kept) * extrapolated(D, previous, sigma, following)
        if following > 0:
            added = 1 - (following / sigma) ** (2 * eta)
            x = x + following * math.sqrt(added) * randn_like(x)
        previous = sigma, D
        callback()
    return x


@dataclasses.dataclass(frozen=True)
class RestartInterval:
    """Noise from σ_min up to σ_max, and `steps` steps back: `repeats` times."""

    sigma_min: float
    sigma_max: float
    steps: int
    repeats: int


RESTARTS = (RestartInterval(sigma_min=0.06, sigma_max=0.3, steps=2, repeats=10),)
"""With them 18 steps of Heun cost 75 evaluations, as many as Xu et al. take on CIFAR-10."""


@torch.no_grad()
def restart(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
    intervals: Sequence[RestartInterval] = RESTARTS,
) -> torch.Tensor:
    """Restart sampling (Xu et al., NeurIPS 2023, section 3.1) around `heun`.

    An interval's σ_min is the nearest of `sigmas`; its steps back are a Karras grid.

    Raises:
        UserError: an interval does not lie within the grid, or has no level of it below its σ_max.
    """
    start = 0
    for interval in sorted(intervals, key=lambda interval: -interval.sigma_min):
        back = grid_back(interval, sigmas)
        stop = sigmas.index(back[-1])
        x = heun(denoiser, x, sigmas[start : stop + 1], randn_like, callback)
        noise_scale = math.sqrt(back[0] ** 2 - back[-1] ** 2)
        for _ in range(interval.repeats):
            x = heun(denoiser, x + noise_scale * randn_like(x), back, randn_like, callback)
        start = stop
    return heun(denoiser, x, sigmas[start:], randn_like, callback)


def grid_back(interval: RestartInterval, sigmas: Sequence[float]) -> list[float]:
    """The `interval`'s noise levels, from σ_max to the one of `sigmas` nearest to σ_min."""
    lowest = min(sigmas[:-1], key=lambda sigma: abs(sigma - interval.sigma_min))
    if not lowest < interval.sigma_max <= sigmas[0]:
        raise UserError(
            f"A restart to the noise level {interval.sigma_max} does not fit a grid from "
            f"{sigmas[0]} whose level nearest to {interval.sigma_min} is {lowest}; take more "
            "steps, or another interval."
        )
    return [*grids.karras(lowest, interval.sigma_max, interval.steps + 1)[:-2], lowest]
