"""Layers in elementary operations, where PyTorch's own cannot be differentiated that often.

Both a directional derivative by forward mode and a gradient with a graph are functions of x and of
the parameters, which training differentiates once more. In PyTorch 2.14 that gradient is wrong
without a word for layer and instance norms, whose formulas take the mean and the variance for
constants, and missing for gated linear units.
"""

import functools

import torch
import torch.nn.functional as F
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.overrides import TorchFunctionMode


class Elementary(TorchFunctionMode):
    """Within the context PyTorch's functions of `REPLACED` are elementary operations."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        function = REPLACED.get(function, function)
        return function(*arguments, **(options or {}))


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """`F.layer_norm`: (x − mean)/√(variance + ε)·weight + bias over the last dimensions."""
    # PyTorch's has its result in order too; dropout's masks depend on that.
    y = _normalise(x.contiguous(), tuple(range(-len(normalized_shape), 0)), eps)
    return _affine(y, weight, bias, x)


def instance_norm(
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    """`F.instance_norm` of maps (B, C, …); that with running statistics is left to PyTorch."""
    if running_mean is not None or not use_input_stats:
        return F.instance_norm(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    per_channel = (-1, *[1] * (x.ndim - 2))
    weight, bias = (p if p is None else p.view(per_channel) for p in (weight, bias))
    return _affine(_normalise(x, tuple(range(2, x.ndim)), eps), weight, bias, x)


def linear(x, weight, bias=None):
    """`F.linear` of rows, where PyTorch may multiply each image by its own copy of the weight."""
    if x.ndim < 3:
        return linear_in_x(F.linear, x, weight, bias)
    rows = linear_in_x(F.linear, x.flatten(0, -2), weight, bias)
    return rows.unflatten(0, x.shape[:-1])


def linear_in_x(function, x, weight, bias=None, *arguments, **options):
    """A function such as `F.conv2d` of the values and, without the bias, of the tangents of x.

    PyTorch would also take it of the values and of a tangent of the weight that is zero.
    """
    values, tangents = unpack_dual(x)
    if tangents is None or unpack_dual(weight).tangent is not None:
        return function(x, weight, bias, *arguments, **options)
    out = function(values, weight, bias, *arguments, **options)
    return make_dual(out, function(tangents, weight, None, *arguments, **options))


def glu(x, dim=-1):
    """`F.glu`: a·sigmoid(b) of the two halves a and b of x."""
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def dropout(x, p=0.5, training=True, inplace=False):
    """`F.dropout` with the mask of a plain pass, drawn in the order in which x lies in memory."""
    if x.is_cuda or not training or p in (0, 1):
        return F.dropout(x, p, training, inplace)
    factors = torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
    return x.mul_(factors) if inplace else x * factors


CONVOLUTIONS = (
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)

REPLACED = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.instance_norm: instance_norm,
    F.linear: linear,
    **{function: functools.partial(linear_in_x, function) for function in CONVOLUTIONS},
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
