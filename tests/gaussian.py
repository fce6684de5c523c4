"""Gaussian data, whose score under every SDE is known."""

import dataclasses

import torch
from device_option import DEVICE

from sde_lib import SDE, expand


@dataclasses.dataclass(frozen=True)
class GaussianData:
    """Data N(mean, std²) in every dimension: p_t is N(a·mean, a²std² + σ²)."""

    mean: float
    std: float
    sde: SDE

    def sample(self, count, shape):
        return self.mean + self.std * torch.randn(count, *shape, device=DEVICE)

    def marginal(self, t):
        """a(t), σ(t) and the variance of p_t, each (B,)."""
        a, sigma = self.sde.marginal_prob(torch.ones_like(t), t)
        return a, sigma, (a * self.std) ** 2 + sigma**2

    def score(self, x, t):
        a, _, variance = self.marginal(t)
        return -(x - expand(a * self.mean, x)) / expand(variance, x)

    def dsm_loss(self, t, shape, weighting, reduce_mean):
        """Expected DSM loss of the exact score at the time t (1,), by the name of the weighting.

        The residual s·σ + z has the variance a²std²/variance in every dimension.
        """
        a, sigma, variance = self.marginal(t)
        loss = (a * self.std) ** 2 / variance
        if weighting == "likelihood":
            _, g = self.sde.sde(torch.ones_like(t), t)
            loss = loss * g**2 / sigma**2
        if weighting == "edm":  # with the data's own standard deviation as sigma_data
            loss = loss * (1 + (sigma / a / self.std) ** 2)
        return float(loss) * (1.0 if reduce_mean else 0.5 * torch.Size(shape).numel())
