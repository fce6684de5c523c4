"""Batches that hold several copies of every image, which dropout has to treat alike."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class Copies(TorchFunctionMode):
    """Within the context a batch of K·B rows holds K copies of B images, one after the other.

    What a network drops out of an image is then the same in all of its copies, and what it would
    drop out of a batch of the B images: masks are drawn for these and repeated, and the random
    generators move on as for them. That holds for PyTorch's dropouts and for masks made from
    `torch.rand`; attention's own `dropout_p` is out of reach, as it is drawn inside of a kernel.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

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
        """A dropout's output, of the factors that it gives to the first copy."""
        first = input[: len(input) // self.count]
        factors = function(torch.ones_like(first), *args, **kwargs)
        return input * torch.cat([factors] * self.count)

    def rand(self, *size: Any, **options: Any) -> torch.Tensor:
        """`torch.rand` of a size (K·B, …); of another one as it is."""
        size = options.pop("size", size)
        shape = size if isinstance(size[0], int) else size[0]
        if shape[0] % self.count:
            return torch.rand(shape, **options)
        draws = torch.rand((shape[0] // self.count, *shape[1:]), **options)
        return torch.cat([draws] * self.count)

    def bernoulli_(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`torch.Tensor.bernoulli_` of K·B rows, in the order of memory of B rows."""
        first = torch.empty_like(tensor[: len(tensor) // self.count]).bernoulli_(*args, **kwargs)
        return tensor.copy_(torch.cat([first] * self.count))
