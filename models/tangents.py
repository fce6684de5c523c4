"""Layers that carry tangents beside their values, with reverse derivatives written out.

Rows are as in `layers`: the B of the values, then those of m tangents. Forward mode and autograd
could derive all of this, in more passes over memory and with more of it kept for the reverse pass.
What is kept has the input's type; sums are taken in float32 or wider.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable


def split_rows(x: torch.Tensor, tangents: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of the values (B, …) and of the tangents (m, B, …)."""
    values = x[: len(x) // (1 + tangents)]
    return values, x[len(values) :].unflatten(0, (tangents, len(values)))


def join_rows(values: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """The inverse of `split_rows`."""
    return torch.cat([values, tangents.flatten(0, 1)])


class AddToValues(Function):
    """Add `shift` (B or 1, C, 1, 1), a constant without tangents, to the values, in place."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, shift: torch.Tensor, tangents: int
    ) -> torch.Tensor:
        ctx.tangents, ctx.shape = tangents, shift.shape
        ctx.mark_dirty(x)
        x[: len(x) // (1 + tangents)] += shift
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        values = grad[: len(grad) // (1 + ctx.tangents)]
        return grad, values.sum_to_size(ctx.shape), None


def drop(x: torch.Tensor, kept: torch.Tensor, gain: float) -> torch.Tensor:
    """gain·x where `kept`, a mask shaped as x, is True, and 0 elsewhere."""
    return torch.where(kept, x * gain, 0.0)


class NormAct(Function):
    """gain·kept·f(y), y = w·n + b: n = (x − mean)/std normalised by groups, f an `Activation`.

    The tangents of n are h = P(dx)/std with P(d) = d − mean(d) − n·mean(n·d), the means over a
    group, and those of the output gain·kept·f′(y)·w·h.

    Args:
        shift: added to the values first, a constant without tangents (B or 1, C, 1, 1); or None.
        kept: which units of the values and of every tangent are not dropped, a mask (B, C, H, W);
            or None.
        gain: the factor of what is kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        shift: torch.Tensor | None,
        kept: torch.Tensor | None,
        gain: float,
        weight: torch.Tensor,
        bias: torch.Tensor,
        groups: int,
        eps: float,
        act: Any,
        tangents: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, shift, kept, weight, bias)
        ctx.gain, ctx.groups, ctx.eps, ctx.act, ctx.tangents = gain, groups, eps, act, tangents
        normal, _, h, _ = _normalise(x, shift, groups, eps, tangents)
        weight, bias = _per_channel(weight, groups), _per_channel(bias, groups)
        y = normal * weight + bias
        values, slope = act.function(y), act.derivative(y) * weight
        if kept is not None:
            kept = kept.view_as(y)
            values, slope = drop(values, kept, gain), drop(slope, kept, gain)
        values, d = values.to(x.dtype), (h * slope).to(x.dtype)
        # Flattened before they are joined, maps keep their channels last where they are.
        return join_rows(values.flatten(1, 2), d.flatten(2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, shift, kept, weight, bias = ctx.saved_tensors
        normal, scale, h, slope = _normalise(x, shift, ctx.groups, ctx.eps, ctx.tangents)
        weight, bias = _per_channel(weight, ctx.groups), _per_channel(bias, ctx.groups)
        y = normal * weight + bias
        over_out, over_d = split_rows(_wide(grad).unflatten(1, (ctx.groups, -1)), ctx.tangents)
        if kept is not None:
            kept = kept.view_as(y)
            over_out, over_d = drop(over_out, kept, ctx.gain), drop(over_d, kept, ctx.gain)
        derivative = ctx.act.derivative(y)
        products = _sum(over_d * h)
        over_y = over_out * derivative + products * (ctx.act.second(y) * weight)
        products = products * derivative
        over_bias = over_y.sum(CHANNEL)
        over_weight = (products + over_y * normal).sum(CHANNEL)

        a, e = over_y * weight, over_d * (derivative * weight)
        # With the means ν = mean(n·e) and μ = mean(n·dx) (`slope`): the values get
        # (P(a − Σ (μe + νdx)/std) − n·Σ mean(e·h))/std and every tangent P(e)/std. Here P(dx)/std
        # is h.
        along = _mean(normal * e)
        a = a - _sum(slope * e) * scale
        over_values = a - _mean(a) - normal * (_mean(normal * a) + _mean(products * weight))
        over_values = (over_values - _sum(along * h)) * scale
        over_tangents = (e - _mean(e) - normal * along) * scale
        over_shift = None
        if shift is not None:
            over_shift = over_values.sum((-2, -1)).view(len(y), -1, 1, 1).sum_to_size(shift.shape)
        over_values, over_tangents = over_values.to(x.dtype), over_tangents.to(x.dtype)
        rows = join_rows(over_values.flatten(1, 2), over_tangents.flatten(2, 3))
        parameters = over_weight.flatten(), over_bias.flatten()
        return rows, over_shift, None, None, *parameters, None, None, None, None


def group_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
) -> torch.Tensor:
    """w·n + b, n of x (B, C, H, W) normalised by groups, in the memory format of x.

    Elementary operations, which any derivative passes through; in float32 or wider.
    """
    x = _wide(x)
    grouped = x.unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(grouped, GROUP, correction=0, keepdim=True)
    slope = torch.rsqrt(variance + eps) * _per_channel(weight, groups)
    offset = _per_channel(bias, groups) - mean * slope
    return torch.addcmul(offset.flatten(1, 2), x, slope.flatten(1, 2))


# Of maps (rows, groups, channels of a group, H, W): a group, and a channel of all rows.
GROUP, CHANNEL = (-3, -2, -1), (0, -2, -1)


def _normalise(x, shift, groups, eps, tangents):
    """n, 1/std, h and mean(n·dx) of rows (rows, C, H, W), in float32 or wider."""
    values, d = split_rows(_wide(x).unflatten(1, (groups, -1)), tangents)
    if shift is not None:
        values = values + _wide(shift).unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(values, GROUP, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    normal = (values - mean) * scale
    slope = _mean(normal * d)
    h = (d - _mean(d) - normal * slope) * scale
    return normal, scale, h, slope


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(parameter, groups):
    return parameter.view(groups, -1, 1, 1)


def _mean(x):
    return x.mean(GROUP, keepdim=True)


def _sum(x):
    """Over the tangents."""
    return x.sum(0)


class Elementwise(Function):
    """f of the values, f′·dx of the tangents; takes f and its first two derivatives."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        function: Callable,
        derivative: Callable,
        second: Callable,
        tangents: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.derivative, ctx.second, ctx.tangents = derivative, second, tangents
        values, d = split_rows(x, tangents)
        return join_rows(function(values), derivative(values) * d)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, d = split_rows(ctx.saved_tensors[0], ctx.tangents)
        over_out, over_d = split_rows(grad, ctx.tangents)
        slope = ctx.derivative(values)
        over_values = over_out * slope
        over_values.addcmul_(_sum(over_d * d), ctx.second(values))
        return join_rows(over_values, over_d * slope), None, None, None, None
