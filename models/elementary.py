"""Layers in elementary operations, where PyTorch's own cannot be differentiated that often.

Both a directional derivative by forward mode and a gradient with a graph are functions of x and of
the parameters, which training differentiates once more. In PyTorch 2.14 that gradient is wrong
without a word for layer and instance norms, whose formulas take the mean and the variance for
constants, and missing for gated linear units.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.overrides import TorchFunctionMode


class Elementary(TorchFunctionMode):
    """Within the context PyTorch's functions of `REPLACED` are elementary operations."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        function = REPLACED.get(function, function)
        return function(*arguments, **(options or {}))


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """`F.layer_norm`: (x − mean)/√(variance + ε)·weight + bias over the last dimensions."""
    # PyTorch's has its result in order too; dropout's masks depend on that.
    y = _normalise(input.contiguous(), tuple(range(-len(normalized_shape), 0)), eps)
    return _affine(y, weight, bias, input)


def instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.instance_norm` of maps (B, C, …); that with running statistics is left to PyTorch."""
    if running_mean is not None or not use_input_stats:
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    per_channel = (-1, *[1] * (input.ndim - 2))
    weight, bias = (p if p is None else p.view(per_channel) for p in (weight, bias))
    return _affine(_normalise(input, tuple(range(2, input.ndim)), eps), weight, bias, input)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear` of rows, where PyTorch may multiply each image by its own copy of the weight."""
    if input.ndim < 3:
        return linear_in_input(F.linear, input, weight, bias)
    rows = linear_in_input(F.linear, input.flatten(0, -2), weight, bias)
    return rows.unflatten(0, input.shape[:-1])


def linear_in_input(
    function: Callable,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *arguments: Any,
    **options: Any,
) -> torch.Tensor:
    """A function such as `F.conv2d` of the values and, without the bias, of the tangents.

    PyTorch would also take it of the values and of a tangent of the weight that is zero.
    """
    values, tangents = unpack_dual(input)
    if tangents is None or unpack_dual(weight).tangent is not None:
        return function(input, weight, bias, *arguments, **options)
    out = function(values, weight, bias, *arguments, **options)
    return make_dual(out, function(tangents, weight, None, *arguments, **options))


def glu(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """`F.glu`: a·sigmoid(b) of the two halves a and b."""
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """`F.dropout` with the mask of a plain pass, drawn in the order that the map has in memory."""
    if input.is_cuda or not training or p in (0, 1):
        return F.dropout(input, p, training, inplace)
    factors = torch.empty_like(input).bernoulli_(1 - p).div_(1 - p)
    return input.mul_(factors) if inplace else input * factors


CONVOLUTIONS = (
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)

REPLACED = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.instance_norm: instance_norm,
    F.linear: linear,
    **{function: functools.partial(linear_in_input, function) for function in CONVOLUTIONS},
    F.glu: glu,
    F.dropout: dropout,
}


def _normalise(x, dims, eps):
    """(x − mean)/√(variance + ε) over `dims`, in float32 or wider."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(dims, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)


def _affine(y, weight, bias, x):
    """weight·y + bias in the type that PyTorch's norms of `x` have."""
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    # Autocast lets norms end in float32.
    return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)
