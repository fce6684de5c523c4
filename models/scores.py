"""Scores: functions `score(x, t)` from (B, C, H, W) and (B,) to (B, C, H, W).

Losses, samplers and likelihoods take such a function and know nothing of networks.
"""

import dataclasses
from collections.abc import Callable

from torch import func

from sde_lib import SDE, expand


@dataclasses.dataclass(frozen=True)
class Score:
    """∇ₓ log p_t(x) as a network models it: net(x, σ(t)) for VE, −net(x, 999t)/std(t) for VP."""

    net: Callable
    sde: SDE
    continuous: bool = True

    def __call__(self, x, t):
        cond, scale = self.sde.conditioning(t, self.continuous)
        return expand(scale, x) * self.net(x, cond)


@dataclasses.dataclass(frozen=True)
class EnergyScore:
    """The score ∇ₓE of a constrained model, E = −½‖h‖²/σ with h = net(x, σ) (VE only).

    Its Jacobian is symmetric by construction.
    """

    net: Callable
    sde: SDE

    def energy(self, x, t):
        """E (B,) at x (B, C, H, W)."""
        cond, _ = self.sde.conditioning(t, continuous=True)
        h = self.net(x, cond)
        return -0.5 * h.square().flatten(1).sum(1) / cond

    def __call__(self, x, t):
        return func.grad(lambda x: self.energy(x, t).sum())(x)
