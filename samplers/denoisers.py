"""Denoisers: functions `denoiser(x, sigma)` from x (B, ...) = data + σ·noise to its posterior mean.

By Tweedie's formula D(x, σ) = x + σ²·∇ₓ log p(x; σ). All samplers of this package take such a
function, and σ as a float on the host. They need neither the SDE nor the guidance.
"""

import dataclasses

import torch

from sde_lib import SDE, ScoreFunction, expand


@dataclasses.dataclass
class Denoiser:
    """D(x, σ) of a score s(x_t, t) under any SDE, x_t = scale·data + std·noise.

    x = x_t/scale is data with noise of scale σ = std/scale, so D = x + σ·std·s(scale·x, t) with t
    the time of σ (the scaling of Karras et al. 2022, section 2 and table 1).

    Args:
        score: function of x_t (B, ...) and t (B,), both of `dtype`.
        dtype: of the score's computation; x and D keep their own, preferably float64.
        interval: (σ_lo, σ_hi); the score is ``score.unguided`` unless σ_lo < σ ≤ σ_hi
            (Kynkäänniemi et al. 2024, eq. 4). None: the score itself everywhere.
        nfe: evaluations so far.
    """

    score: ScoreFunction
    sde: SDE
    dtype: torch.dtype = torch.float32
    interval: tuple[float, float] | None = None
    nfe: int = 0

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.nfe += 1
        score = self.score
        if self.interval is not None and not self.interval[0] < sigma <= self.interval[1]:
            score = score.unguided
        time = self.sde.time(sigma)
        scale, _ = self.sde.scale_and_std(time)
        t = torch.full((len(x),), time, dtype=self.dtype, device=x.device)
        # Computed as the score computes it: a network's score is its output over this very std.
        _, std = self.sde.marginal_prob(t, t)
        value = score((scale * x).to(self.dtype), t)
        return x + (sigma * expand(std, x) * value).to(x.dtype)
