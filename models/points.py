"""The networks of both papers' experiments on points (B, 2) at noise levels σ (B,) of the VE SDE.

Their Jacobian-vector products are taken by `torch.func.jvp` (`models.jvp`).
"""

import ml_collections
import torch
import torch.nn.functional as F
from torch import nn

from utils import lookup

ACTIVATIONS = {"elu": F.elu, "leaky_relu": lambda o: F.leaky_relu(o, 0.1)}


class Swish(nn.Module):
    """u·sigmoid(βu) of features (B, width), with a learnable β per feature, initially 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(width))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return u * torch.sigmoid(self.beta * u)


class PlaneNet(nn.Module):
    """The score network of Chao et al. (ICML 2023, section 3.2): (x − o)/σ with o (B, 2) learnt.

    For an energy it returns h = x − act(o) instead, see `EnergyScore`. `activation`, a name in
    `ACTIVATIONS`, is act.
    """

    def __init__(self, energy: bool = False, activation: str = "elu") -> None:
        super().__init__()
        self.energy = energy
        self.activation = lookup(ACTIVATIONS, activation, "config.model.activation")
        self.point = nn.Sequential(
            nn.Linear(2, 64), Swish(64), nn.Linear(64, 128), Swish(128), nn.Linear(128, 256)
        )
        self.noise = nn.Sequential(
            nn.Linear(1, 1), Swish(1), nn.Linear(1, 1), Swish(1), nn.Linear(1, 1)
        )
        self.head = nn.Sequential(Swish(257), nn.Linear(257, 2))

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "PlaneNet":
        """The network that ``config.model`` describes."""
        return cls(config.model.energy, config.model.activation)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma = sigma[:, None]
        o = self.head(torch.cat([self.point(x), self.noise(sigma)], dim=1))
        return x - self.activation(o) if self.energy else (x - o) / sigma


class MoonsNet(nn.Module):
    """The score network and classifier of Chao et al. (ICLR 2022) on two moons: (B, outputs)."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.point = nn.Sequential(
            nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64)
        )
        self.noise = nn.Sequential(
            nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)
        )
        self.head = nn.Linear(80, outputs)

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "MoonsNet":
        """The score network."""
        return cls()

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.point(x), self.noise(sigma[:, None])], dim=1))


class MoonsClassifier(nn.Module):
    """The same network as a classifier; its parameter names differ from those of a score."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = MoonsNet(classes)

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "MoonsClassifier":
        """The classifier of ``config.classifier.classes``."""
        return cls(config.classifier.classes)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.classifier(x, sigma)
