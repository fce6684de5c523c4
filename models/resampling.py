"""Double or halve the resolution of maps (B, C, H, W): FIR filters, nearest pixels, averages.

Layers with the argument `tangents` are as in `layers`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.jvp import add_to_values
from models.layers import Conv2d, channels_come_last, no_autocast


def fir_matrix(
    kernel: tuple[float, ...], size: int, up: int, down: int, pads: tuple[int, int]
) -> torch.Tensor:
    """The matrix (out, size) that resamples an axis of `size` pixels.

    Insert up − 1 zeros between the pixels, pad with zeros by pads = (before, after), filter with
    `kernel`, a tuple normalised here to the sum `up`, and keep every `down`-th pixel.
    """
    before, after = pads
    k = torch.tensor(kernel[::-1], dtype=torch.float64)
    k *= up / k.sum()
    count = (size * up + before + after - len(k)) // down + 1
    taps = up * torch.arange(size) + before - down * torch.arange(count)[:, None]
    inside = (taps >= 0) & (taps < len(k))
    return torch.where(inside, k[taps.clamp(0, len(k) - 1)], 0).float()


@functools.cache
def fir_matrices(
    sizes: tuple[int, int], device: torch.device, dtype: torch.dtype, *filtering: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`fir_matrix` of both `sizes`, the height and the width."""
    kernel, up, down, pads = filtering
    return tuple(fir_matrix(kernel, size, up, down, pads).to(device, dtype) for size in sizes)


def fir_resample(
    x: torch.Tensor, kernel: tuple[float, ...], pads: tuple[int, int], up: int = 1, down: int = 1
) -> torch.Tensor:
    """Resample both axes of x (B, C, H, W) as `fir_matrix` says: two matrix products.

    Channels-last maps stay channels-last. Within autocast, too, x keeps its type: images are
    float32, and rounding them would be visible.
    """
    sizes = tuple(x.shape[-2:])
    height, width = fir_matrices(sizes, x.device, x.dtype, kernel, up, down, pads)
    with no_autocast(x.device.type):
        if not channels_come_last(x):
            return height @ (x @ width.T)
        rows = width @ x.permute(0, 2, 3, 1)  # (B, H, new W, C)
        return (height @ rows.flatten(2)).unflatten(2, rows.shape[2:]).permute(0, 3, 1, 2)


def nearest_upsample(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Resampler(nn.Module):
    """Base of the layers that change resolution; holds the FIR kernel."""

    def __init__(self, fir: bool, fir_kernel: Sequence[float]) -> None:
        super().__init__()
        self.fir = fir
        self.kernel = tuple(fir_kernel)


class Downsample(Resampler):
    """Halve the resolution, without parameters."""

    def resized(self, height: int, width: int) -> tuple[int, int]:
        return height // 2, width // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.fir:
            return F.avg_pool2d(x, 2)
        surplus = len(self.kernel) - 2
        return fir_resample(x, self.kernel, ((surplus + 1) // 2, surplus // 2), down=2)


class Upsample(Resampler):
    """Double the resolution, without parameters."""

    def resized(self, height: int, width: int) -> tuple[int, int]:
        return 2 * height, 2 * width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.fir:
            return nearest_upsample(x)
        length = len(self.kernel)
        return fir_resample(x, self.kernel, ((length + 1) // 2, (length - 2) // 2), up=2)


class ConvDownsample(Resampler):
    """A 3×3 convolution of stride 2, after the FIR filter if `fir`."""

    def __init__(
        self, channels_in: int, channels_out: int, fir: bool, fir_kernel: Sequence[float]
    ) -> None:
        super().__init__(fir, fir_kernel)
        conv = Conv2d(channels_in, channels_out, 3, stride=2)
        self.add_module("Conv2d_0" if fir else "Conv_0", conv)

    def forward(self, x: torch.Tensor, tangents: int = 0) -> torch.Tensor:
        if self.fir:
            surplus = len(self.kernel)  # (L − 2) of the filter and 2 of the convolution
            filtered = fir_resample(x, self.kernel, ((surplus + 1) // 2, surplus // 2))
            return self.Conv2d_0(filtered, tangents)
        return self.Conv_0(F.pad(x, (0, 1, 0, 1)), tangents)


class ConvUpsample(Resampler):
    """With `fir` a transposed 3×3 convolution of stride 2 and the filter; else nearest and 3×3."""

    def __init__(
        self, channels_in: int, channels_out: int, fir: bool, fir_kernel: Sequence[float]
    ) -> None:
        super().__init__(fir, fir_kernel)
        conv = Conv2d(channels_in, channels_out, 3, padding=1)
        self.add_module("Conv2d_0" if fir else "Conv_0", conv)

    def forward(self, x: torch.Tensor, tangents: int = 0) -> torch.Tensor:
        if self.fir:
            weight = self.Conv2d_0.weight.flip(2, 3).transpose(0, 1)
            y = F.conv_transpose2d(x, weight, stride=2)
            surplus = len(self.kernel) - 4
            pads = ((surplus + 1) // 2 + 1, surplus // 2 + 1)
            y = 4 * fir_resample(y, self.kernel, pads)
            return add_to_values(y, self.Conv2d_0.bias[None, :, None, None], tangents)
        return self.Conv_0(nearest_upsample(x), tangents)
