"""Mixtures of Gaussians as data, whose score under every SDE is known. All in float64."""

import dataclasses
import functools

import pytest
import torch
from device_option import DEVICE

from samplers.denoisers import Denoiser
from sde_lib import SDE, VESDE, VPSDE, SubVPSDE

SDES = VESDE(), VPSDE(), SubVPSDE()

each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Data Σ w_k N(mean_k, C): p_t is Σ w_k N(scale·mean_k, scale²C + std²I).

    Args:
        weights: w (K,).
        means: (K, ...), points or images.
        covariance: C (n, n) of the n elements of a mean, flattened.
    """

    weights: torch.Tensor
    means: torch.Tensor
    covariance: torch.Tensor
    sde: SDE

    @functools.cached_property
    def principal(self):
        """The variances (n,) along C's axes, and these as columns."""
        return torch.linalg.eigh(self.covariance)

    def score(self, x, t):
        """∇ₓ log p_t (B, ...) at x (B, ...), for a batch at one time."""
        scale, std = self.sde.scale_and_std(t[0].item())
        variances, axes = self.principal
        spread = scale**2 * variances + std**2
        y, means = x.flatten(1) @ axes, scale * self.means.flatten(1) @ axes
        logits = self.weights.log() + y / spread @ means.T - (means**2 / spread).sum(1) / 2
        posterior_mean = torch.softmax(logits, 1) @ means
        return ((posterior_mean - y) / spread @ axes.T).reshape(x.shape)

    def denoiser(self):
        """The exact D(x, σ), in float64."""
        return Denoiser(self.score, self.sde, torch.float64)

    def wider(self, factor):
        """The mixture with `factor` times its covariance."""
        return dataclasses.replace(self, covariance=factor * self.covariance)

    def first(self):
        """The first component alone, a Gaussian."""
        weights = torch.ones(1, dtype=torch.float64, device=DEVICE)
        return dataclasses.replace(self, weights=weights, means=self.means[:1])

    def noise(self, count, seed=0):
        """Standard normal noise (count, ...)."""
        generator = torch.Generator().manual_seed(seed)
        shape = count, *self.means.shape[1:]
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)

    def nearest(self, x):
        """The component (B,) whose mean is nearest to x (B, ...)."""
        return torch.cdist(x.flatten(1), self.means.flatten(1)).argmin(1)


def points(sde, weights=(0.5, 0.2, 0.3)):
    """Three components in the plane."""
    means = torch.tensor([[-1.0, 0.2], [0.9, 0.7], [0.5, -1.1]], dtype=torch.float64)
    covariance = torch.tensor([[0.10, 0.04], [0.04, 0.06]], dtype=torch.float64)
    return mixture(weights, means, covariance, sde)


def images(sde, weights=(0.6, 0.4)):
    """Two components of images (2, 2, 2) with correlated pixels."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(2, 2, 2, 2, generator=generator, dtype=torch.float64)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    covariance = 0.01 * root @ root.T + 0.02 * torch.eye(8, dtype=torch.float64)
    return mixture(weights, means, covariance, sde)


def mixture(weights, means, covariance, sde):
    """A `Mixture` on the device that is tested."""
    weights = torch.tensor(weights, dtype=torch.float64)
    return Mixture(weights.to(DEVICE), means.to(DEVICE), covariance.to(DEVICE), sde)


PROBLEMS = points, images

each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda make: make.__name__)
