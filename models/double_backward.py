"""BatchNorm2d with a custom double backward.

DLSM differentiates the input gradient of a classifier once more. For a batch norm PyTorch does
this in dozens of passes over its maps (B, C, H, W), and saves their results. Here the second
derivative costs about as much as the first. The kernels can be compiled, since autograd never
differentiates them.

With n = (x − mean)/std over the batch of all processes, and ⟨·⟩ the mean over it,
    y = relu(γ n + β + shortcut).
If the term in brackets has the gradient a, x has the gradient
    G = γ/std · P a,    P a = a − ⟨a⟩ − n ⟨n a⟩.
P is symmetric, so with a cotangent u of G, a has the gradient T = γ/std · P u, and x has
    −(⟨n a⟩ T + ⟨n u⟩ G)/std − γ s n/std²,    s = ⟨u a⟩ − ⟨u⟩⟨a⟩ − ⟨n u⟩⟨n a⟩.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import distributed


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all processes that train together.

    `normalise` has the custom double backward.
    """

    kernels = None  # `KERNELS`, unless `compute.prepare` sets compiled ones

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and distributed.size() > 1:
            return self.normalise(x, relu=False)
        return super().forward(x)

    def normalise(
        self, x: torch.Tensor, shortcut: torch.Tensor | None = None, relu: bool = True
    ) -> torch.Tensor:
        """relu(batch norm of x + shortcut), maps (B, C, H, W); without the relu if it is False."""
        if not self.training:
            y = super().forward(x)
            y = y if shortcut is None else y + shortcut
            return F.relu(y) if relu else y
        running = self.running_mean, self.running_var, self.num_batches_tracked, self.momentum
        kernels = self.kernels or KERNELS
        return _Normalise.apply(
            x, self.weight, self.bias, shortcut, self.eps, relu, kernels, running
        )


class _Normalise(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, shortcut, eps, relu, kernels, running):
        y, mean, rstd = kernels["values"](x, weight, bias, eps, shortcut, relu, running)
        ctx.save_for_backward(x, y if relu else None, weight, mean, rstd)
        ctx.kernels, ctx.has_shortcut = kernels, shortcut is not None
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, weight, mean, rstd = ctx.saved_tensors
        grad_x, a, grad_weight, grad_bias = _NormaliseGradient.apply(
            grad, x, y, weight, mean, rstd, ctx.kernels
        )
        grad_shortcut = a if ctx.has_shortcut else None
        return grad_x, grad_weight, grad_bias, grad_shortcut, None, None, None, None


class _NormaliseGradient(Function):
    """Map y's gradient to those of x, the shortcut, γ and β, the first two differentiably."""

    @staticmethod
    def forward(ctx, grad, x, y, weight, mean, rstd, kernels):
        grad_x, a, sums, means = kernels["gradient"](grad, x, y, weight, mean, rstd)
        ctx.save_for_backward(a, x, y, weight, mean, rstd, means)
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        grad_bias, grad_weight = sums
        # The gradients of γ and β are not differentiated again.
        ctx.mark_non_differentiable(grad_weight, grad_bias)
        return grad_x, a, grad_weight, grad_bias

    @staticmethod
    @once_differentiable
    def backward(ctx, u, grad_shortcut, *_):
        if u is None:
            return grad_shortcut, *[None] * 6
        grad_grad, grad_x, grad_weight = ctx.kernels["second"](u, *ctx.saved_tensors, grad_shortcut)
        return grad_grad, grad_x, None, grad_weight, None, None, None


BATCH = (0, 2, 3)


def _statistics(x):
    """Mean and biased variance (C,) over the images of all processes."""
    if torch.compiler.is_compiling():  # fused with the cast
        variance, mean = torch.var_mean(_wide(x), BATCH, correction=0)
    else:
        mean, variance = torch.ops.aten.batch_norm_update_stats(_wide(x), None, None, 0.0)
    if distributed.size() == 1:
        return mean, variance
    whole = distributed.mean(mean)
    return whole, distributed.mean(variance + (mean - whole).square())


def _update(running, mean, variance, pixels):
    """Update the running statistics; this process has `pixels` of each channel."""
    running_mean, running_variance, batches, momentum = running
    pixels *= distributed.size()
    batches += 1
    running_mean.lerp_(mean, momentum)
    running_variance.lerp_(variance * (pixels / (pixels - 1)), momentum)


def _mean_over_processes(sums, x):
    return distributed.mean(sums) / (x.numel() // x.shape[1])


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _of(channels):
    return channels[:, None, None]


def _values(x, weight, bias, eps, shortcut, relu, running):
    """y, and the mean and 1/std (C,) of the batch."""
    mean, variance = _statistics(x)
    _update(running, mean, variance, x.numel() // x.shape[1])
    rstd = torch.rsqrt(variance + eps)
    scale = weight * rstd
    y = torch.addcmul(_of(bias - mean * scale), _wide(x), _of(scale))
    if shortcut is not None:
        y += shortcut
    return (y.relu_() if relu else y).to(x.dtype), mean, rstd


def _gradient(grad, x, y, weight, mean, rstd):
    """G, as a combination of a, x and 1; a; Σa and Σna (2, C); and their means."""
    a = grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)
    sums = _sum_and_sum_n(_wide(a), x, mean, rstd)
    means = _mean_over_processes(sums, x)
    a_mean, na = means
    scale = weight * rstd
    slope = -scale * na * rstd
    grad_x = torch.addcmul(_of(-scale * a_mean - slope * mean), _wide(a), _of(scale))
    return grad_x.addcmul_(_wide(x), _of(slope)).to(x.dtype), a, sums, means


def _sum_and_sum_n(a, x, mean, rstd):
    """Σa and Σna (2, C): the gradients of a batch norm's β and γ, in one pass."""
    _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        a, _wide(x), rstd, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return torch.stack([grad_bias, grad_weight])


def _second(u, a, x, y, weight, mean, rstd, means, grad_shortcut):
    """The gradients of `grad` and of x, as combinations of u, a, x and 1, and that of γ."""
    sum_u, sum_nu = _sum_and_sum_n(_wide(u), x, mean, rstd)
    sums = torch.stack([sum_u, sum_nu, (_wide(u) * a).sum(BATCH)])
    (a_mean, na), (u_mean, nu, ua) = means, _mean_over_processes(sums, x)
    scale = weight * rstd
    slope = -scale * nu * rstd
    grad_grad = torch.addcmul(_of(-scale * u_mean - slope * mean), _wide(u), _of(scale))
    grad_grad.addcmul_(_wide(x), _of(slope))
    if grad_shortcut is not None:
        grad_grad += grad_shortcut
    grad_grad = grad_grad.to(u.dtype)
    if y is not None:
        grad_grad = torch.ops.aten.threshold_backward(grad_grad, y, 0)

    factor_u, factor_a = -rstd * scale * na, -rstd * scale * nu
    factor_n = -2 * na * factor_a - rstd * scale * (ua - u_mean * a_mean - nu * na)
    offset = -factor_u * u_mean - factor_a * a_mean - factor_n * rstd * mean
    grad_x = torch.addcmul(_of(offset), _wide(u), _of(factor_u))
    grad_x.addcmul_(_wide(a), _of(factor_a)).addcmul_(_wide(x), _of(factor_n * rstd))
    grad_weight = rstd * (sums[2] - a_mean * sum_u - na * sum_nu)
    return grad_grad, grad_x.to(x.dtype), grad_weight


KERNELS = {"values": _values, "gradient": _gradient, "second": _second}
