"""What the samplers and the packages that they are compared with are all given."""

import dataclasses
from collections.abc import Callable

import mixture
import numpy as np
import torch
import torch.nn.functional as F

from sde_lib import VESDE

SIGMAS = [10.0, 6.2, 3.5, 1.9, 0.9, 0.42, 0.2, 0.11, 0.05]
"""Levels with unequal ratios, without the 0."""

CHURN = {"s_churn": 4.0, "s_tmin": 0.15, "s_tmax": 4.0, "s_noise": 1.003}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A denoiser D(x, σ), σ a float, and the standard normal noise x (B, ...) is shaped as."""

    denoiser: Callable
    shape: tuple[int, ...]

    def start(self):
        """x at the first level, float64."""
        return SIGMAS[0] * Noise(0).randn_like(torch.empty(self.shape))


class Noise:
    """Draw j is RandomState(first + j).randn(*shape), float64."""

    def __init__(self, first):
        self.next = first

    def randn_like(self, x):
        noise = np.random.RandomState(self.next).randn(*x.shape)
        self.next += 1
        return torch.from_numpy(noise)


def convolutional(x, sigma):
    """A small float32 network's D (B, 3, H, W), preconditioned as by Karras et al. (2022)."""
    first, second = (
        torch.from_numpy(0.3 * np.random.RandomState(seed).randn(*shape)).float()
        for seed, shape in ((1, (8, 3, 3, 3)), (2, (3, 8, 3, 3)))
    )
    size = (sigma**2 + 0.25) ** 0.5
    hidden = torch.tanh(F.conv2d((x / size).float(), first, padding=1) + 0.25 * np.log(sigma))
    output = F.conv2d(hidden, second, padding=1).double()
    return 0.25 / size**2 * x + 0.5 * sigma / size * output


PROBLEMS = {
    "points": Problem(mixture.points(VESDE()).denoiser(), (5, 2)),
    "images": Problem(convolutional, (2, 3, 8, 8)),
}
