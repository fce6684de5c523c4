"""Samplers that add noise in their steps, which reduces the errors of earlier steps.

The signatures are those of `deterministic`.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from samplers.deterministic import Denoising, NoiseLike, extrapolated, heun_step, no_callback


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
    the denoiser is evaluated at noise levels above sigmas[0].
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
    diffusion (Karras et al. 2022, eq. 6). η = 1 is the reverse SDE; a larger η combines its
    predictor with a corrector.
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
