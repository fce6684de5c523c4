"""Exponential moving average of parameters, in the published file format."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch


class EMA:
    """shadow −= (1 − d)(shadow − p) with d = min(decay, (1 + n)/(10 + n)) at the n-th update.

    It averages the parameters that require gradients, in `parameters()` order.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.parameters = [p for p in parameters if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the averages to the parameters and the number of updates to 0."""
        torch._foreach_copy_(self.shadow, self.parameters)
        self.num_updates = 0

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Overwrite the parameters with their averages."""
        torch._foreach_copy_(self.parameters, self.shadow)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the parameters are their averages."""
        raw = [p.detach().clone() for p in self.parameters]
        self.copy_to_parameters()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, raw)

    def state_dict(self) -> dict[str, Any]:
        return {
            "decay": self.decay,
            "num_updates": self.num_updates,
            "shadow_params": self.shadow,
        }

    @torch.no_grad()
    def load(self, shadow: Sequence[torch.Tensor], num_updates: int) -> None:
        """Set the averages and the number of their updates."""
        self.num_updates = num_updates
        torch._foreach_copy_(self.shadow, list(shadow))
