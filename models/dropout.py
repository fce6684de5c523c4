"""Dropout with byte masks."""

from collections.abc import Sequence

import numpy as np
import torch


def dropout_mask(
    shape: Sequence[int],
    probability: float,
    device: torch.device,
    channels_last: bool = False,
) -> torch.Tensor:
    """Which units of maps (B, C, H, W) are kept: False with `probability`, one byte a unit.

    On a CPU the mask of a random state does not depend on the memory format.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    kept = torch.empty(shape, dtype=torch.bool, device=device, memory_format=memory_format)
    if kept.is_cuda:
        return kept.bernoulli_(1 - probability)  # one kernel
    # On a CPU uniform draws are several times as fast as Bernoulli draws.
    return torch.ge(torch.rand(shape, device=device), probability, out=kept)


def dropout_gain(probability: float) -> float:
    """1 / (1 − probability), the factor of kept units, by a float32 division."""
    return float(np.float32(1) / np.float32(1 - probability))


def apply_mask(x: torch.Tensor, kept: torch.Tensor | None, gain: float) -> torch.Tensor:
    """gain·x where `kept`, a mask shaped as x, is True, and 0 elsewhere; x without a mask."""
    return x if kept is None else torch.where(kept, x * gain, 0.0)
