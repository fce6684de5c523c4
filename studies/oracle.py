"""Exact scores under Gaussian noise: of finite sets of points, and of the data sets in the plane.

The density of points x_i under noise of variance v is the mixture of N(x_i, v I); that of a uniform
distribution on boxes is a mixture of products of differences of normal distribution functions. The
sets of `readers.points` are made of Gaussians or boxes, so that their noised densities are known.
All is computed in float64, and differentiable.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from sde_lib import VESDE

CHUNK = 2**22  # distances at a time
ARM = 200  # boxes along each arm of the spirals


def in_parts(function: Callable, x: torch.Tensor, count: int) -> torch.Tensor:
    """``function(x)`` of points x (B, D) as float64, in parts of at most CHUNK / `count` rows."""
    return torch.cat([function(part) for part in x.double().split(max(1, CHUNK // count))])


@dataclasses.dataclass(frozen=True)
class Gaussians:
    """Equal Gaussians N(c_i, v I) around the `centres` c_i (N, D); points with `variance` v = 0."""

    centres: torch.Tensor
    variance: float = 0.0

    def __call__(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The score (B, D) at x (B, D) under noise of this variance."""
        centres, total = self.centres.double(), self.variance + variance

        def score(x):
            # |x − c|² without |x|², on which no weight depends.
            squares = centres.square().sum(1) - 2 * x @ centres.T
            return (torch.softmax(-squares / (2 * total), 1) @ centres - x) / total

        return in_parts(score, x, len(centres))

    def log_density(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The log-density (B,), likewise."""
        centres, total = self.centres.double(), self.variance + variance
        size = math.log(len(centres)) + x.shape[1] / 2 * math.log(2 * math.pi * total)

        def density(x):
            return torch.logsumexp(-torch.cdist(x, centres).square() / (2 * total), 1)

        return in_parts(density, x, len(centres)) - size


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The uniform distribution on boxes of equal size with `low` and `high` corners (N, D)."""

    low: torch.Tensor
    high: torch.Tensor

    def __call__(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The score (B, D) at x (B, D) under noise of this variance."""
        std = math.sqrt(variance)

        def score(x):
            a, b, upper, log_mass = self._log_masses(x, std)
            # ∂/∂x of them, with the sign that the exchange reverses.
            slope = torch.exp(_log_normal(a) - log_mass) - torch.exp(_log_normal(b) - log_mass)
            slope = torch.where(upper, -slope, slope) / std
            return (torch.softmax(log_mass.sum(2), 1)[:, :, None] * slope).sum(1)

        return in_parts(score, x, len(self.low))

    def log_density(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The log-density (B,), likewise."""
        volume = len(self.low) * (self.high - self.low)[0].prod().item()

        def density(x):
            return torch.logsumexp(self._log_masses(x, math.sqrt(variance))[3].sum(2), 1)

        return in_parts(density, x, len(self.low)) - math.log(volume)

    def _log_masses(self, x, std):
        """a, b, which of them are exchanged, and log(Φ(b) − Φ(a)): (B, N, D) each."""
        a, b = (self.low - x[:, None]) / std, (self.high - x[:, None]) / std
        # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): of the two, the one in the lower tail does not cancel.
        upper = a + b > 0
        a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
        log_b = torch.special.log_ndtr(b)
        return a, b, upper, log_b + torch.log(-torch.expm1(torch.special.log_ndtr(a) - log_b))


def _log_normal(u):
    return -u.square() / 2 - math.log(2 * math.pi) / 2


# ---------------------------------------------------------------- the sets of the plane


def checkerboard() -> Boxes:
    """The distribution of `readers.points.checkerboard`."""
    corners = [(column, row + column % 2) for column in range(-2, 2) for row in (-2, 0)]
    low = 3 * torch.tensor(corners, dtype=torch.float64)
    return Boxes(low, low + 3)


def gaussian_8() -> Gaussians:
    """The distribution of `readers.points.gaussian_8`."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return Gaussians(8 / math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], dim=1), 0.5)


def spiral_2() -> Boxes:
    """That of `readers.points.spiral_2`: boxes at the centres of `ARM` equal parts of each arm."""
    n = 3 * math.pi * torch.sqrt((torch.arange(ARM, dtype=torch.float64) + 0.5) / ARM)
    low = torch.stack([-n * n.cos(), n * n.sin()], dim=1)
    high = low + 0.5
    scale = 2.3 / 3
    return Boxes(scale * torch.cat([low, -high]), scale * torch.cat([high, -low]))


PLANE = {"checkerboard": checkerboard, "gaussian_8": gaussian_8, "spiral_2": spiral_2}


@dataclasses.dataclass(frozen=True)
class ExactScore:
    """The score s(x, t) of data under the VE SDE, from ``score(x, variance)`` of their density."""

    score: Callable
    sde: VESDE

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """(B, 2) at x (B, 2) and t (B,), whose entries are one and the same time."""
        sigma = self.sde.sigma(t[0].double()).item()
        return self.score(x, variance=sigma**2).to(x.dtype)
