"""Denoisers: functions `denoiser(x, sigma)` from x (B, ...) = data + σ·noise to its posterior mean.

By Tweedie's formula D(x, σ) = x + σ²·∇ₓ log p(x; σ). All samplers of this package take such a
function, and σ as a float on the host. They know of neither SDEs nor guidance: these are
compositions.
"""

import dataclasses
from collections.abc import Callable

import torch

from sde_lib import SDE, expand


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """D(x, σ) of a score s(x_t, t) under any SDE, x_t = scale·data + std·noise.

    x = x_t/scale is data with noise of scale σ = std/scale, so D = x + σ·std·s(scale·x, t) with t
    the time of σ (the scaling of Karras et al. 2022, section 2 and table 1).

    Args:
        score: function of x_t (B, ...) and t (B,), both of `dtype`.
        dtype: what the score computes in; x and D keep their own, best float64.
    """

    score: Callable
    sde: SDE
    dtype: torch.dtype = torch.float32

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        time = self.sde.time(sigma)
        scale, _ = self.sde.scale_and_std(time)
        t = torch.full((len(x),), time, dtype=self.dtype, device=x.device)
        # Computed as the score computes it: a network's score is its output over this very std.
        _, std = self.sde.marginal_prob(t, t)
        score = self.score((scale * x).to(self.dtype), t)
        return x + (sigma * expand(std, x) * score).to(x.dtype)


@dataclasses.dataclass(frozen=True)
class GuidanceInterval:
    """Guidance at σ_lo < σ ≤ σ_hi alone (Kynkäänniemi et al. 2024, eq. 4).

    Elsewhere the guided denoiser, and with it the classifier, is not asked.
    """

    guided: Callable
    unguided: Callable
    sigma_lo: float
    sigma_hi: float

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        inside = self.sigma_lo < sigma <= self.sigma_hi
        return (self.guided if inside else self.unguided)(x, sigma)


class Counted:
    """`denoiser`, with the number of its evaluations so far in `nfe`."""

    def __init__(self, denoiser: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
        self.denoiser = denoiser
        self.nfe = 0

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.nfe += 1
        return self.denoiser(x, sigma)
