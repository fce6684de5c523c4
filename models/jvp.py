"""Jacobian-vector products J v, J = ∂f/∂x, in one pass with the values, and their gradients.

`NormAct` and `add_to_values` are the parts of a layer that carries tangents: its maps have
(1 + m)·B rows, first the B rows of the values, then B rows for each of m tangents. Linear maps act
on all rows at once. Compared with PyTorch's reverse over forward mode, these layers save fewer
tensors and can be compiled. They save tensors in the input's type and sum in float32 or wider.

Networks without such layers, and functions, are differentiated by `jacobian.value_and_jvp`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from models.dropout import apply_mask
from models.jacobian import value_and_jvp

# ---------------------------------------------------------------- networks


def network_value_and_jvp(
    network: Callable, x: torch.Tensor, cond: torch.Tensor, v: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """network(x, cond, **options) (B, …) and J v (m, B, …) for m vectors v (m, B, …).

    A network with the attribute ``carries_tangents = True`` is called as
    ``network(x, cond, v, **options)`` and returns both; for any other, `jacobian.value_and_jvp`.
    Dropout masks are those of an ordinary pass from the same random state, equal for all vectors.

    Raises:
        ValueError: see `jacobian.value_and_jvp`.
    """
    if getattr(network, "carries_tangents", False):
        return network(x, cond, v, **options)
    return value_and_jvp(lambda x: network(x, cond, **options), x, v)


# ---------------------------------------------------------------- layers that carry tangents


def split_rows(x: torch.Tensor, tangents: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of the values (B, …) and of the tangents (m, B, …)."""
    values = x[: len(x) // (1 + tangents)]
    return values, x[len(values) :].unflatten(0, (tangents, len(values)))


def join_rows(values: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """The inverse of `split_rows`."""
    return torch.cat([values, tangents.flatten(0, 1)])


def add_to_values(x: torch.Tensor, shift: torch.Tensor, tangents: int) -> torch.Tensor:
    """Add `shift` (B or 1, C, 1, 1), a constant without tangents, to the values.

    With tangents `x` is overwritten: it must be a new tensor that nothing else uses.
    """
    if not tangents:
        return x + shift
    count = len(x) // (1 + tangents)
    shift = shift.to(x.dtype).expand(count, -1, -1, -1)  # as autocast rounds biases
    return x.add_(F.pad(shift, (0, 0, 0, 0, 0, 0, 0, len(x) - count)))


class NormAct(Function):
    """Group norm, activation and dropout of rows ((1 + m)·B, C, H, W), shaped alike.

    The values are gain·kept·f(y) with y = w·n + b, n = (x − mean)/std normalised by groups and f an
    `Activation`. With P(d) = d − mean(d) − n·mean(n·d), the means over a group, the tangents of n
    are h = P(dx)/std, and the tangents of the output are gain·kept·f′(y)·w·h.

    Args:
        shift: added to the values first, a constant without tangents (B or 1, C, 1, 1); or None.
        kept: dropout's mask of the values and of every tangent (B, C, H, W); or None.
        gain: the factor of kept units.
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
        kept = kept if kept is None else kept.view_as(y)
        values = apply_mask(act.function(y), kept, gain).to(x.dtype)
        d = (h * apply_mask(act.derivative(y) * weight, kept, gain)).to(x.dtype)
        # Flattened before they are joined, channels-last maps stay so.
        return join_rows(values.flatten(1, 2), d.flatten(2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, shift, kept, weight, bias = ctx.saved_tensors
        normal, scale, h, slope = _normalise(x, shift, ctx.groups, ctx.eps, ctx.tangents)
        weight, bias = _per_channel(weight, ctx.groups), _per_channel(bias, ctx.groups)
        y = normal * weight + bias
        grad_out, grad_d = split_rows(_wide(grad).unflatten(1, (ctx.groups, -1)), ctx.tangents)
        kept = kept if kept is None else kept.view_as(y)
        grad_out, grad_d = (apply_mask(g, kept, ctx.gain) for g in (grad_out, grad_d))
        derivative = ctx.act.derivative(y)
        products = (grad_d * h).sum(0)
        grad_y = grad_out * derivative + products * (ctx.act.second(y) * weight)
        products = products * derivative
        grad_bias = grad_y.sum(CHANNEL)
        grad_weight = (products + grad_y * normal).sum(CHANNEL)

        a, e = grad_y * weight, grad_d * (derivative * weight)
        # With ν = mean(n·e) and μ = mean(n·dx) (`slope`), the gradient of the values is
        # (P(a − Σ (μe + νdx)/std) − n·Σ mean(e·h))/std and that of each tangent is P(e)/std.
        # P(dx)/std is h.
        along = _mean(normal * e)
        a = a - (slope * e).sum(0) * scale
        grad_values = a - _mean(a) - normal * (_mean(normal * a) + _mean(products * weight))
        grad_values = (grad_values - (along * h).sum(0)) * scale
        grad_tangents = (e - _mean(e) - normal * along) * scale
        grad_shift = None
        if shift is not None:
            grad_shift = grad_values.sum((-2, -1)).view(len(y), -1, 1, 1).sum_to_size(shift.shape)
        grad_values, grad_tangents = grad_values.to(x.dtype), grad_tangents.to(x.dtype)
        rows = join_rows(grad_values.flatten(1, 2), grad_tangents.flatten(2, 3))
        parameters = grad_weight.flatten(), grad_bias.flatten()
        return rows, grad_shift, None, None, *parameters, None, None, None, None


def group_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
) -> torch.Tensor:
    """w·n + b, n of x (B, C, H, W) normalised by groups, in x's memory format and at least float32.

    It consists of primitive operations, which a compiler fuses with the following ones.
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
