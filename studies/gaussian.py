"""The effect of an asymmetric error on a search for the mode (Chao et al., ICML 2023, section 3.1).

    python -m studies.gaussian

The score of a Gaussian gets an error that rotates (usbm) or points outwards (csbm), both of a size
set by ε. Gradient ascent then takes more steps to the mode, and many more with the rotating error,
whose Jacobian is asymmetric. All is in double precision.
"""

import argparse
import dataclasses
import math

import numpy as np
import torch

from models import jacobian
from models.jacobian import value_and_jvp
from studies import common

EPSILONS = (0.0, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 1.75e-3, 2.25e-3)
VARIANCE = 0.1**2  # of the target
STEPS = 300


@dataclasses.dataclass(frozen=True)
class Field:
    """The target's score −x/0.01 with an error m·(−x₂, x₁), `rotating`, or m·(x₁, x₂).

    m = √(2(ε + 1e-6)·μ / (p·(‖x‖² + ε + 1e-6) + 1e-8)), p the target's density; 0 for ε = 0.
    """

    epsilon: float
    rotating: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The field (B, 2) at x (B, 2)."""
        score = -x / VARIANCE
        if self.epsilon == 0:
            return score
        size = self.epsilon + 1e-6
        p = log_density(x).exp()
        m = torch.sqrt(2 * size * ring(x) / (p * (x.square().sum(1) + size) + 1e-8))
        error = torch.stack([-x[:, 1], x[:, 0]], dim=1) if self.rotating else x
        return score + m[:, None] * error


def log_density(x: torch.Tensor) -> torch.Tensor:
    """log p (B,) of the target N(0, 0.1² I) at x (B, 2)."""
    return -x.square().sum(1) / (2 * VARIANCE) - math.log(2 * math.pi * VARIANCE)


def ring(x: torch.Tensor) -> torch.Tensor:
    """μ (B,): the density at x of ten equal unit Gaussians on the circle of radius 3."""
    angles = 2 * math.pi * torch.arange(10, dtype=x.dtype) / 10
    centres = 3 * torch.stack([angles.cos(), angles.sin()], dim=1)
    squares = (x[:, None] - centres).square().sum(2)
    return torch.exp(-squares / 2).mean(1) / (2 * math.pi)


def ascend(field: Field) -> int:
    """The number of steps until the mean NLL of ten points is below 0.001; at most `STEPS`.

    x += a_i·s with a_i = 0.0125·e^(−i/1000), 0.01·e^(−i/1000) for ε = 0.
    """
    x = torch.from_numpy(-2 + 0.5 * np.random.RandomState(0).randn(10, 2))
    rate = 0.0125 if field.epsilon > 0 else 0.01
    for i in range(STEPS):
        nll = (-torch.log(log_density(x).exp() + 1e-16)).clamp(min=0).mean()
        if nll < 0.001:
            return i
        x = x + rate * math.exp(-i / 1000) * field(x)
    return STEPS


def asymmetries(field: Field) -> tuple[float, float]:
    """NAsym = Σ p·½A/tr JJᵀ and Asym = Σ p·A over a grid, A = tr JJᵀ − tr JJ."""
    x = torch.from_numpy(common.grid(-3, 3, 20))
    _, J = jacobian.matrix(lambda v: value_and_jvp(field, x, v), x)
    A, p = jacobian.asymmetry(J), log_density(x).exp()
    return (p * A / 2 / J.square().sum((1, 2))).sum().item(), (p * A).sum().item()


def measure(epsilon: float) -> dict[str, float]:
    """The row of the table for `epsilon`, a dict."""
    rotating, pointing = Field(epsilon, rotating=True), Field(epsilon, rotating=False)
    nasym, asym = asymmetries(rotating)
    return {
        "usbm_steps": ascend(rotating),
        "usbm_nasym": nasym,
        "usbm_asym": asym,
        "csbm_steps": ascend(pointing),
    }


def main() -> None:
    rows = {f"{epsilon:g}": measure(epsilon) for epsilon in EPSILONS}
    common.print_table(
        ["ε", *rows["0"]],
        [[epsilon, *(f"{value:.3g}" for value in row.values())] for epsilon, row in rows.items()],
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    main()
