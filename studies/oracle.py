"""Exact scores under Gaussian noise: of finite sets of points, and of the sets of the plane.

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


def score(
    x: torch.Tensor, centres: torch.Tensor, variance: float, floor: float = 0.0
) -> torch.Tensor:
    """∇ log of the mean of N(x; c_i, v I) over the `centres` c_i (N, D), at x (B, D): float64.

    With a `floor` the density in the denominator is larger by it, as in the DLSM paper's code.
    """
    centres = centres.double()
    parts = x.double().split(max(1, CHUNK // len(centres)))
    return torch.cat([_score(part, centres, variance, floor) for part in parts])


def _score(x, centres, variance, floor):
    # |x − c|² less |x|², which no weight depends on.
    squares = centres.square().sum(1) - 2 * x @ centres.T
    logits = -squares / (2 * variance)
    result = (torch.softmax(logits, 1) @ centres - x) / variance
    if floor == 0:
        return result
    log_density = (
        torch.logsumexp(logits, 1)
        - x.square().sum(1) / (2 * variance)
        - math.log(len(centres))
        - x.shape[1] / 2 * math.log(2 * math.pi * variance)
    )
    return result * torch.sigmoid(log_density - math.log(floor))[:, None]


def boxes_score(
    x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, variance: float
) -> torch.Tensor:
    """∇ log of the mean of the noised uniform densities on the boxes, at x (B, D): float64.

    Args:
        low, high: corners (N, D) of boxes of equal size, each of weight 1/N.
    """
    parts = x.double().split(max(1, CHUNK // len(low)))
    return torch.cat([_boxes_score(part, low, high, variance) for part in parts])


def _boxes_score(x, low, high, variance):
    std = math.sqrt(variance)
    a, b, upper, log_mass = _boxes_log_masses(x, low, high, std)
    # ∂/∂x of them, with the sign that the exchange has turned.
    slope = torch.exp(_log_normal(a) - log_mass) - torch.exp(_log_normal(b) - log_mass)
    slope = torch.where(upper, -slope, slope) / std
    weights = torch.softmax(log_mass.sum(2), 1)
    return (weights[:, :, None] * slope).sum(1)


def _boxes_log_masses(x, low, high, std):
    """a, b, which of them are exchanged, and log(Φ(b) − Φ(a)): (B, N, 2) each."""
    a, b = (low - x[:, None]) / std, (high - x[:, None]) / std
    # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): of the two, the one in the lower tail does not cancel.
    upper = a + b > 0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    log_b = torch.special.log_ndtr(b)
    return a, b, upper, log_b + torch.log(-torch.expm1(torch.special.log_ndtr(a) - log_b))


def _log_normal(u):
    return -u.square() / 2 - math.log(2 * math.pi) / 2


# ---------------------------------------------------------------- the sets of the plane


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The uniform distribution on boxes of equal size with `low` and `high` corners (N, D)."""

    low: torch.Tensor
    high: torch.Tensor

    def __call__(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The score (B, D) at x (B, D) under noise of this variance."""
        return boxes_score(x, self.low, self.high, variance)

    def log_density(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The log-density (B,), likewise."""
        parts = x.double().split(max(1, CHUNK // len(self.low)))
        std = math.sqrt(variance)
        masses = [_boxes_log_masses(part, self.low, self.high, std)[3].sum(2) for part in parts]
        volume = len(self.low) * (self.high - self.low)[0].prod().item()
        return torch.cat([torch.logsumexp(mass, 1) for mass in masses]) - math.log(volume)


@dataclasses.dataclass(frozen=True)
class Gaussians:
    """Equal Gaussians N(c_i, v I) around the `centres` c_i (N, D), of `variance` v."""

    centres: torch.Tensor
    variance: float

    def __call__(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The score (B, D) at x (B, D) under noise of this variance."""
        return score(x, self.centres, self.variance + variance)

    def log_density(self, x: torch.Tensor, variance: float) -> torch.Tensor:
        """The log-density (B,), likewise."""
        total = self.variance + variance
        logits = -torch.cdist(x.double(), self.centres).square() / (2 * total)
        size = math.log(len(self.centres)) + x.shape[1] / 2 * math.log(2 * math.pi * total)
        return torch.logsumexp(logits, 1) - size


def checkerboard() -> Boxes:
    """The set of that name."""
    corners = [(column, row + column % 2) for column in range(-2, 2) for row in (-2, 0)]
    low = 3 * torch.tensor(corners, dtype=torch.float64)
    return Boxes(low, low + 3)


def gaussian_8() -> Gaussians:
    """The set of that name."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return Gaussians(8 / math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], dim=1), 0.5)


def spiral_2() -> Boxes:
    """The set of that name: boxes at the middles of `ARM` equally probable parts of each arm."""
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
