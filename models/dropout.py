"""Dropout with byte masks, and the same masks in several passes or several copies of an image."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


def dropout_mask(shape: Sequence[int], probability: float, device: torch.device) -> torch.Tensor:
    """Which units are kept: False with `probability`. Autograd saves one byte a unit."""
    # Uniform numbers are drawn several times as fast as Bernoulli's.
    return torch.rand(shape, device=device) >= probability


def dropout_gain(probability: float) -> float:
    """1 / (1 − probability), the factor of what is kept; rounded as float32 tensors divide."""
    return float(np.float32(1) / np.float32(1 - probability))


def apply_mask(x: torch.Tensor, kept: torch.Tensor | None, gain: float) -> torch.Tensor:
    """gain·x where `kept`, a mask shaped as x, is True, and 0 elsewhere; x without a mask."""
    return x if kept is None else torch.where(kept, x * gain, 0.0)


def replay_dropout(device: torch.device) -> contextlib.AbstractContextManager:
    """A context that restores the random generators: the next pass has the same masks."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def tile_dropout_masks(copies: int) -> contextlib.AbstractContextManager:
    """A context for batches of K·B rows that hold `copies` = K copies of B images, one by one.

    Masks are drawn for the B images and repeated, so that all copies of an image have the same, and
    the random generators advance as for B images. Covers PyTorch's dropout functions and masks
    made from `torch.rand`; not `dropout_p` of attention, which is drawn inside a kernel.
    """
    # The mode costs a call of Python for every operation.
    return TiledMasks(copies) if copies > 1 else contextlib.nullcontext()


class TiledMasks(TorchFunctionMode):
    """The mode of `tile_dropout_masks`."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in DROPOUTS:
            return self.dropout(function, *args, **kwargs)
        if function is torch.rand:
            return self.rand(*args, **kwargs)
        if function is torch.Tensor.bernoulli_:
            return self.bernoulli_(*args, **kwargs)
        return function(*args, **kwargs)

    def dropout(
        self, function: Callable, input: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The input times the factors that `function` gives the first copy."""
        factors = function(torch.ones_like(self._first(input)), *args, **kwargs)
        return input * torch.cat([factors] * self.copies)

    def rand(self, *size: Any, **options: Any) -> torch.Tensor:
        """`torch.rand` of a size (K·B, …); of another size unchanged."""
        size = options.pop("size", size)
        shape = size if isinstance(size[0], int) else size[0]
        if shape[0] % self.copies:
            return torch.rand(shape, **options)
        draws = torch.rand((shape[0] // self.copies, *shape[1:]), **options)
        return torch.cat([draws] * self.copies)

    def bernoulli_(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`torch.Tensor.bernoulli_` of K·B rows, in the memory order of B rows."""
        first = torch.empty_like(self._first(tensor)).bernoulli_(*args, **kwargs)
        return tensor.copy_(torch.cat([first] * self.copies))

    def _first(self, tensor):
        return tensor[: len(tensor) // self.copies]
