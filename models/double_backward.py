"""BatchNorm2d with a custom double backward.

DLSM differentiates the input gradient of a classifier once more. PyTorch derives that for a batch
norm by dozens of passes over its maps (B, C, H, W), whose results it saves. Here the second
derivative costs about as much as the first. The kernels can be compiled, since autograd never
differentiates them.

With n = (x − mean)/std over the batch of all processes, and ⟨·⟩ the mean over it,
    y = relu(γ n + β + shortcut).
The gradient a of what is in the brackets gives x the gradient
    G = γ/std · P a,    P a = a − ⟨a⟩ − n ⟨n a⟩.
P is symmetric, so a cotangent u of G gives a the gradient T = γ/std · P u, and x
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

    kernels = None  # `KERNELS` but where `compute.prepare` compiles them

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
        over_x, a, over_weight, over_bias = _NormaliseGradient.apply(
            grad, x, y, weight, mean, rstd, ctx.kernels
        )
        over_shortcut = a if ctx.has_shortcut else None
        return over_x, over_weight, over_bias, over_shortcut, None, None, None, None


class _NormaliseGradient(Function):
    """From the gradient of y those of x, the shortcut, γ and β; the first two differentiable."""

    @staticmethod
    def forward(ctx, grad, x, y, weight, mean, rstd, kernels):
        over_x, a, sums, means = kernels["gradient"](grad, x, y, weight, mean, rstd)
        ctx.save_for_backward(a, x, y, weight, mean, rstd, means)
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        over_bias, over_weight = sums
        # The gradients of γ and β are not differentiated again.
        ctx.mark_non_differentiable(over_weight, over_bias)
        return over_x, a, over_weight, over_bias

    @staticmethod
    @once_differentiable
    def backward(ctx, u, over_shortcut, *_):
        if u is None:
            return over_shortcut, *[None] * 6
        over_grad, over_x, over_weight = ctx.kernels["second"](u, *ctx.saved_tensors, over_shortcut)
        return over_grad, over_x, None, over_weight, None, None, None


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
    over_x = torch.addcmul(_of(-scale * a_mean - slope * mean), _wide(a), _of(scale))
    return over_x.addcmul_(_wide(x), _of(slope)).to(x.dtype), a, sums, means


def _sum_and_sum_n(a, x, mean, rstd):
    """Σa and Σna (2, C): the gradients of a batch norm's β and γ, in one pass."""
    _, over_weight, over_bias = torch.ops.aten.native_batch_norm_backward(
        a, _wide(x), rstd, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return torch.stack([over_bias, over_weight])


def _second(u, a, x, y, weight, mean, rstd, means, over_shortcut):
    """The gradients of `grad` and of x, as combinations of u, a, x and 1, and that of γ."""
    sum_u, sum_nu = _sum_and_sum_n(_wide(u), x, mean, rstd)
    sums = torch.stack([sum_u, sum_nu, (_wide(u) * a).sum(BATCH)])
    (a_mean, na), (u_mean, nu, ua) = means, _mean_over_processes(sums, x)
    scale = weight * rstd
    slope = -scale * nu * rstd
    over_grad = torch.addcmul(_of(-scale * u_mean - slope * mean), _wide(u), _of(scale))
    over_grad.addcmul_(_wide(x), _of(slope))
    if over_shortcut is not None:
        over_grad += over_shortcut
    over_grad = over_grad.to(u.dtype)
    if y is not None:
        over_grad = torch.ops.aten.threshold_backward(over_grad, y, 0)

    over_u, over_a = -rstd * scale * na, -rstd * scale * nu
    over_n = -2 * na * over_a - rstd * scale * (ua - u_mean * a_mean - nu * na)
    offset = -over_u * u_mean - over_a * a_mean - over_n * rstd * mean
    over_x = torch.addcmul(_of(offset), _wide(u), _of(over_u))
    over_x.addcmul_(_wide(a), _of(over_a)).addcmul_(_wide(x), _of(over_n * rstd))
    over_weight = rstd * (sums[2] - a_mean * sum_u - na * sum_nu)
    return over_grad, over_x.to(x.dtype), over_weight


KERNELS = {"values": _values, "gradient": _gradient, "second": _second}
