"""Symmetry without tied weights (Chao et al., ICML 2023, section 6).

    python -m studies.autoencoder

The score s(x) = R·Sw(Wᵀx + b) + c of a one-layer autoencoder is trained by the asymmetry of its
Jacobian alone. The asymmetry vanishes and RWᵀ becomes symmetric, but R does not become W.
"""

import argparse

import torch
from torch import nn
from tqdm import tqdm

from models import jacobian
from models.jacobian import value_and_jvp
from models.points import Swish
from studies import common

SEED, STEPS, EVERY = 8, 10_002, 200


class Autoencoder(nn.Module):
    """R·Sw(Wᵀx + b) + c of points x (B, 2), its weights and biases uniform in [−1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(2, 2)  # Wᵀ and b
        self.decode = nn.Linear(2, 2)  # R and c
        self.activation = Swish(2)
        for layer in (self.decode, self.encode):
            nn.init.uniform_(layer.weight, -1, 1)
            nn.init.uniform_(layer.bias, -1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.activation(self.encode(x)))

    def sym_diff(self) -> float:
        """|Σ_k (R₀ₖW₁ₖ − R₁ₖW₀ₖ)|: how far RWᵀ is from symmetric."""
        product = self.decode.weight @ self.encode.weight
        return (product[0, 1] - product[1, 0]).abs().item()

    def weight_diff(self) -> float:
        """‖R − W‖_F."""
        return (self.decode.weight - self.encode.weight.T).norm().item()


def asymmetry(network: Autoencoder, x: torch.Tensor) -> torch.Tensor:
    """The mean over points x (B, 2) of tr JJᵀ − tr JJ, a scalar to differentiate."""
    _, J = jacobian.matrix(lambda v: value_and_jvp(network, x, v), x)
    return jacobian.asymmetry(J).mean()


def train(steps: int = STEPS) -> list[tuple[int, float, float, float]]:
    """Rows (step, loss, sym_diff, weight_diff), one for every `EVERY` steps."""
    torch.manual_seed(SEED)
    network = Autoencoder()
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    x = torch.from_numpy(common.grid(-10, 10, 40, "float32"))
    rows = []
    for step in tqdm(range(steps), desc="autoencoder", unit="step"):
        loss = asymmetry(network, x)
        if step % EVERY == 0:
            rows.append((step, loss.item(), network.sym_diff(), network.weight_diff()))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return rows


def main() -> None:
    cells = [[f"{step}", *(f"{x:.4g}" for x in values)] for step, *values in train()]
    common.print_table(["step", "loss", "sym_diff", "weight_diff"], cells)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    main()
