"""Layers that carry tangents beside their values, with reverse derivatives written out.

Rows are as in `layers`: the B of the values, then those of m tangents. Forward mode and autograd
could derive all of this; they would take three times as many passes over memory, and these layers
are where such a step spends its time.
"""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def split_rows(x, tangents):
    """The rows of the values (B, …) and of the tangents (m, B, …)."""
    values = x[: len(x) // (1 + tangents)]
    return values, x[len(values) :].unflatten(0, (tangents, len(values)))


def join_rows(values, tangents):
    """The inverse of `split_rows`."""
    return torch.cat([values, tangents.flatten(0, 1)])


class AddToValues(Function):
    """Add `shift` (B or 1, C, 1, 1), a constant without tangents, to the values, in place."""

    @staticmethod
    def forward(ctx, x, shift, tangents):
        ctx.tangents, ctx.shape = tangents, shift.shape
        ctx.mark_dirty(x)
        x[: len(x) // (1 + tangents)] += shift
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values = grad[: len(grad) // (1 + ctx.tangents)]
        return grad, values.sum_to_size(ctx.shape), None


class GroupNorm(Function):
    """Group normalisation x̂ = (x − mean)/std, whose tangents are dx̂ = P(dx)/std.

    P(d) = d − mean(d) − x̂·mean(x̂·d), the means over a group. Then a scale and a shift per channel.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, tangents):
        grouped = x.reshape(len(x), groups, -1)  # (rows, groups, elements)
        values, d = split_rows(grouped, tangents)
        variance, mean = torch.var_mean(values, -1, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + eps)
        normal = (values - mean) * scale
        slope = _mean(normal * d)
        pushed = torch.addcmul(d - _mean(d), normal, slope, value=-1).mul_(scale)
        ctx.save_for_backward(normal, scale, pushed, slope, weight)
        ctx.tangents = tangents
        rows = join_rows(normal, pushed).reshape(x.shape) * weight[:, None, None]
        rows[: len(values)] += bias[:, None, None]
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        normal, scale, pushed, slope, weight = ctx.saved_tensors
        shape, count = grad.shape, len(normal)
        rows = grad.flatten(2)
        over_bias = rows[:count].sum((0, 2))
        over_weight = (rows[:count] * normal.reshape_as(rows[:count])).sum((0, 2))
        over_weight += (rows[count:] * pushed.reshape_as(rows[count:])).sum((0, 2))

        grad = (grad * weight[:, None, None]).reshape(len(grad), normal.shape[1], -1)
        a, e = split_rows(grad, ctx.tangents)
        # With d̂ = dx̂, the means ν = mean(x̂·e) and μ = mean(x̂·dx) (`slope`): the values get
        # (P(a − Σ (μe + νdx)/std) − x̂·Σ mean(e·d̂))/std and every tangent P(e)/std. As P takes the
        # means and the part along x̂ out of dx too, P(dx)/std = d̂ serves in its place.
        along = _mean(normal * e)
        a = torch.addcmul(a, _sum(slope * e), scale, value=-1)
        over_values = (a - _mean(a)).addcmul_(normal, _mean(normal * a), value=-1)
        over_values -= _sum(along * pushed)
        over_values.addcmul_(normal, _sum(_mean(e * pushed)), value=-1)
        over_tangents = (e - _mean(e)).addcmul_(normal, along, value=-1)
        rows = join_rows(over_values.mul_(scale), over_tangents.mul_(scale))
        return rows.reshape(shape), over_weight, over_bias, None, None, None


def _mean(x):
    return x.mean(-1, keepdim=True)


def _sum(x):
    """Over the tangents."""
    return x.sum(0)


class Elementwise(Function):
    """f of the values, f′·dx of the tangents; takes f and its first two derivatives."""

    @staticmethod
    def forward(ctx, x, function, derivative, second, tangents):
        ctx.save_for_backward(x)
        ctx.derivative, ctx.second, ctx.tangents = derivative, second, tangents
        values, d = split_rows(x, tangents)
        return join_rows(function(values), derivative(values) * d)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, d = split_rows(ctx.saved_tensors[0], ctx.tangents)
        over_out, over_d = split_rows(grad, ctx.tangents)
        slope = ctx.derivative(values)
        over_values = over_out * slope
        over_values.addcmul_(_sum(over_d * d), ctx.second(values))
        return join_rows(over_values, over_d * slope), None, None, None, None
