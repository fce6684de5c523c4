"""The layers of NCSN++: initialisation, 1×1 maps, FIR resampling, attention, residual blocks.

Names of parameters are those of the published checkpoints. Feature maps are (B, C, H, W).

A layer with the argument `tangents` can carry the m tangents of Jacobian-vector products, see
`jvp`: its maps then have (1 + m)·B rows, first the B rows of the values, then B rows for each
tangent. One reverse pass differentiates values and tangents together, which `torch.compile`
supports; it does not support a second reverse pass.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.dropout import apply_mask, dropout_gain, dropout_mask
from models.jvp import NormAct, add_to_values, group_norm, join_rows, split_rows

SQRT2 = math.sqrt(2.0)


# ---------------------------------------------------------------- activations


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise function with its first two derivatives."""

    function: Callable
    derivative: Callable
    second: Callable

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def _swish_derivative(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _swish_second(x):
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _identity(x):
    return x


IDENTITY = Activation(_identity, torch.ones_like, torch.zeros_like)
SWISH = Activation(F.silu, _swish_derivative, _swish_second)


# ---------------------------------------------------------------- linear maps and normalisation


def channels_come_last(x: torch.Tensor) -> bool:
    """Whether maps (B, C, H, W) are channels-last in memory, and not contiguous."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A context within which operations compute in the types of their inputs."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def variance_scaling_(
    weight: torch.Tensor, scale: float, fan_in: float, fan_out: float
) -> torch.Tensor:
    """Fill with U(−b, b), b = √(3·scale / mean(fan_in, fan_out)); scale 0 becomes 1e-10."""
    scale = scale or 1e-10
    bound = math.sqrt(3 * scale / ((fan_in + fan_out) / 2))
    return nn.init.uniform_(weight, -bound, bound)


class Conv2d(nn.Conv2d):
    """A convolution with variance-scaling weights and zero biases."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        self.init_scale = init_scale
        super().__init__(channels_in, channels_out, kernel_size, **options)

    def reset_parameters(self) -> None:
        area = self.weight[0, 0].numel()
        variance_scaling_(
            self.weight, self.init_scale, self.in_channels * area, self.out_channels * area
        )
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor, tangents: int = 0) -> torch.Tensor:
        if not tangents:
            return super().forward(x)
        return add_to_values(self.linear(x), self.bias[None, :, None, None], tangents)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution without its bias."""
        return self._conv_forward(x, self.weight, None)


class Linear(nn.Linear):
    """A linear layer with variance-scaling weights and zero bias."""

    def reset_parameters(self) -> None:
        variance_scaling_(self.weight, 1.0, self.in_features, self.out_features)
        nn.init.zeros_(self.bias)


class GroupNorm(nn.GroupNorm):
    """Group norm with min(C/4, 32) groups and ε = 1e-6, followed by an `Activation`.

    `shift`, `kept` and `gain` are as in `NormAct`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(min(channels // 4, 32), channels, eps=1e-6)

    def forward(
        self,
        x: torch.Tensor,
        tangents: int = 0,
        act: Activation = IDENTITY,
        shift: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
        gain: float = 1.0,
    ) -> torch.Tensor:
        if tangents:
            settings = self.num_groups, self.eps, act, tangents
            return NormAct.apply(x, shift, kept, gain, self.weight, self.bias, *settings)
        h = apply_mask(act(self.normalise(x if shift is None else x + shift)), kept, gain)
        # Under autocast h is float32, which the next convolution would round, and on a GPU
        # PyTorch's group norm returns the channels first: one pass changes both back.
        last = channels_come_last(x)
        return h.to(x.dtype, memory_format=torch.channels_last if last else torch.preserve_format)

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W), normalised by groups and mapped by the weight and the bias."""
        if torch.compiler.is_compiling() and channels_come_last(x):
            # Primitive operations are fused with the following ones, and stay channels-last.
            return group_norm(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class NIN(nn.Module):
    """A 1×1 map over the channels: weight `W` (in, out), bias `b`."""

    def __init__(self, channels_in: int, channels_out: int, init_scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels_in, channels_out))
        self.b = nn.Parameter(torch.zeros(channels_out))
        variance_scaling_(self.W, init_scale, channels_in, channels_out)

    def forward(self, x: torch.Tensor, tangents: int = 0) -> torch.Tensor:
        return nin(x, self.W, self.b, tangents)


def nin(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, tangents: int) -> torch.Tensor:
    """The 1×1 map of x (B, C, H, W) by `weight` (in, out) and `bias` (out,)."""
    weight = weight.t()[:, :, None, None]
    if not tangents:
        return F.conv2d(x, weight, bias)
    return add_to_values(F.conv2d(x, weight), bias[None, :, None, None], tangents)


class GaussianFourierProjection(nn.Module):
    """concat(sin 2πWc, cos 2πWc) of c (B,): (B, 2·nf), with fixed W ~ N(0, scale²)."""

    def __init__(self, nf: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(nf) * scale, requires_grad=False)

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        # The order of operations is that of the published networks, since the argument reaches
        # hundreds of radians, where rounding matters.
        angle = c[:, None] * self.W[None, :] * (2 * math.pi)
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


def positional_embedding(c: torch.Tensor, nf: int) -> torch.Tensor:
    """sin, then cos, of c·exp(−k·ln 10000/(nf/2 − 1)) for c (B,): (B, nf)."""
    half = nf // 2
    k = torch.arange(half, device=c.device, dtype=torch.float32)
    angle = c.float()[:, None] * torch.exp(k * (-math.log(10000) / (half - 1)))[None, :]
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


# ---------------------------------------------------------------- blocks


class ResidualSum(nn.Module):
    """x + h, divided by √2 with `skip_rescale`."""

    def __init__(self, skip_rescale: bool) -> None:
        super().__init__()
        self.scale = 1 / SQRT2 if skip_rescale else 1.0

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return (x + h) * self.scale


class Combine(nn.Module):
    """Join the input pyramid `x`, through a 1×1 convolution, to the features `y`."""

    def __init__(self, channels_in: int, channels_out: int, method: str) -> None:
        super().__init__()
        self.Conv_0 = Conv2d(channels_in, channels_out, 1)
        self.method = method

    def forward(self, x: torch.Tensor, y: torch.Tensor, tangents: int = 0) -> torch.Tensor:
        h = self.Conv_0(x, tangents)
        return torch.cat([h, y], dim=1) if self.method == "cat" else h + y


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tangents: int = 0) -> torch.Tensor:
    """softmax(q kᵀ/√C) v of queries, keys and values (rows, pixels, C)."""
    if not tangents:
        # PyTorch's fused kernels need an axis of heads, and contiguous channels.
        q, k, v = ((x if x.stride(-1) == 1 else x.contiguous())[:, None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)[:, 0]
    (q, dq), (k, dk), (v, dv) = (split_rows(x, tangents) for x in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1])
    weights = torch.softmax(q @ k.mT * scale, dim=-1)
    d = (dq @ k.mT + q @ dk.mT) * scale
    d = weights * (d - (weights * d).sum(-1, keepdim=True))
    return join_rows(weights @ v, d @ v + weights @ dv)


class Block(nn.Module):
    """Base of the blocks: ``rows(x, …, tangents)`` computes what `forward` returns.

    `compute.prepare` may set `compiled_values`, which is `rows` compiled whole for passes without
    tangents.
    """

    compiled_values: Callable | None = None

    def run(self, *inputs: Any, tangents: int) -> torch.Tensor:
        """``rows(*inputs, tangents)``, compiled where it may be."""
        if tangents or self.compiled_values is None:
            return self.rows(*inputs, tangents)
        return self.compiled_values(*inputs, 0)


class AttnBlock(Block):
    """One head of self-attention over all pixels, q·k/√C, with a residual connection."""

    def __init__(self, channels: int, skip_rescale: bool, init_scale: float) -> None:
        super().__init__()
        self.GroupNorm_0 = GroupNorm(channels)
        self.NIN_0 = NIN(channels, channels)
        self.NIN_1 = NIN(channels, channels)
        self.NIN_2 = NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, init_scale=init_scale)
        self.add = ResidualSum(skip_rescale)

    def forward(self, x: torch.Tensor, tangents: int = 0) -> torch.Tensor:
        return self.run(x, tangents=tangents)

    def rows(self, x: torch.Tensor, tangents: int) -> torch.Tensor:
        h = self.GroupNorm_0(x, tangents)
        maps = self.NIN_0, self.NIN_1, self.NIN_2
        weight, bias = torch.cat([m.W for m in maps], dim=1), torch.cat([m.b for m in maps])
        qkv = nin(h, weight, bias, tangents).flatten(2).mT.chunk(3, dim=-1)
        h = attention(*qkv, tangents).mT.reshape(x.shape)
        return self.add(x, self.NIN_3(h, tangents))


class ResnetBlock(Block):
    """Two 3×3 convolutions around the noise embedding, with swish and a residual connection.

    `resample`, an `Upsample` or `Downsample`, also changes the resolution (BigGAN's block);
    `nin_shortcut` uses a NIN where the channels change, as DDPM's block does.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        temb_dim: int,
        *,
        dropout: float,
        skip_rescale: bool,
        init_scale: float,
        resample: nn.Module | None = None,
        nin_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.add = ResidualSum(skip_rescale)
        self.dropout, self.gain = dropout, dropout_gain(dropout)
        self.GroupNorm_0 = GroupNorm(channels_in)
        self.Conv_0 = Conv2d(channels_in, channels_out, 3, padding=1)
        self.Dense_0 = Linear(temb_dim, channels_out)
        self.GroupNorm_1 = GroupNorm(channels_out)
        self.Conv_1 = Conv2d(channels_out, channels_out, 3, padding=1, init_scale=init_scale)
        self.shortcut = None
        if nin_shortcut and channels_in != channels_out:
            self.NIN_0 = NIN(channels_in, channels_out)
            self.shortcut = "NIN_0"
        elif channels_in != channels_out or resample is not None:
            self.Conv_2 = Conv2d(channels_in, channels_out, 1)
            self.shortcut = "Conv_2"

    def forward(
        self,
        x: torch.Tensor,
        embedding: torch.Tensor | None = None,
        tangents: int = 0,
        skip: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The block's output; `embedding` is as `noise_projections` gives it.

        `skip` is first concatenated to x along the channels.
        """
        return self.run(x, skip, embedding, self.draw_mask(x, tangents), tangents=tangents)

    def draw_mask(self, x: torch.Tensor, tangents: int) -> torch.Tensor | None:
        """Dropout's mask, drawn outside of `rows`: compiled and eager passes have the same."""
        if not (self.training and self.dropout):
            return None
        size = x.shape[2:] if self.resample is None else self.resample.resized(*x.shape[2:])
        shape = (len(x) // (1 + tangents), self.Conv_0.out_channels, *size)
        return dropout_mask(shape, self.dropout, x.device, channels_come_last(x))

    def rows(
        self,
        x: torch.Tensor,
        skip: torch.Tensor | None,
        embedding: torch.Tensor | None,
        kept: torch.Tensor | None,
        tangents: int,
    ) -> torch.Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        h = self.GroupNorm_0(x, tangents, SWISH)
        if self.resample is not None:
            h, x = self.resample(torch.cat([h, x])).chunk(2)
        h = self.Conv_0.linear(h)
        shift = self.Conv_0.bias[None, :, None, None]
        if embedding is not None:
            shift = shift + embedding[:, :, None, None]
        h = self.GroupNorm_1(h, tangents, SWISH, shift, kept, self.gain)
        h = self.Conv_1(h, tangents)
        if self.shortcut is not None:
            x = getattr(self, self.shortcut)(x, tangents)
        return self.add(x, h)


def noise_projections(blocks: Sequence[ResnetBlock], h: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each block's `Dense_0` of h (B, temb_dim): (B, channels), all by one matrix product."""
    layers = [block.Dense_0 for block in blocks]
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(h, weight, bias).split([layer.out_features for layer in layers], dim=1)
