"""The preconditioning of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models" (NeurIPS 2022), table 1, of any network.

With σ_d the root mean square of the data, and F the network, the denoiser is
    D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise),
    c_skip = σ_d²/(σ² + σ_d²)    c_out = σ·σ_d/√(σ² + σ_d²)
    c_in = 1/√(σ² + σ_d²)        c_noise = ¼ ln σ.
The score is (D − x)/σ², written without the difference, which cancels at small σ:
    s(x; σ) = σ_d/σ·c_in·F(c_in·x; c_noise) − c_in²·x.
"""

from collections.abc import Iterable
from typing import Any

import ml_collections
import torch
from torch import nn

from models.jvp import network_value_and_jvp
from sde_lib import expand


class EDM(nn.Module):
    """The score s(x; σ) (B, C, H, W) of a network F, for the continuous VE SDE.

    Networks embed the logarithm of their condition. F is therefore given exp(c_noise) = σ^¼.

    Args:
        network: F, called as ``network(x, condition)``, and with `labels` if it takes them.
        sigma_data: σ_d, about 0.5 for images in [0, 1] or [−1, 1].
    """

    carries_tangents = True

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network, self.sigma_data = network, sigma_data
        self.takes_labels = getattr(network, "takes_labels", False)

    @classmethod
    def from_config(cls, network: nn.Module, config: ml_collections.ConfigDict) -> "EDM":
        """`network` with the σ_d of ``config.model``."""
        return cls(network, config.model.sigma_data)

    def edges(self) -> Iterable[tuple[nn.Module, bool]]:
        """See `compute.edges`."""
        return self.network.edges() if hasattr(self.network, "edges") else ()

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        v: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """s at x (B, …) and σ (B,); with m vectors v (m, B, …) also J v, shaped as v."""
        c_in = expand(torch.rsqrt(sigma**2 + self.sigma_data**2), x)
        factor = self.sigma_data / expand(sigma, x) * c_in
        condition = sigma**0.25
        if v is None:
            return factor * self.network(c_in * x, condition, **options) - c_in**2 * x
        F, Jv = network_value_and_jvp(self.network, c_in * x, condition, c_in * v, **options)
        return factor * F - c_in**2 * x, factor * Jv - c_in**2 * v
