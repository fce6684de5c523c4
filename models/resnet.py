"""Noise-conditioned residual classifiers (Chao et al., ICLR 2022): log p(y | x_t) at noise σ(t).

The CIFAR ResNet of He et al. (CVPR 2016): a 3×3 stem, stages of basic blocks, global average pool,
one linear layer. After each stage Linear(SiLU(temb)) is added to every pixel, temb being the
Fourier embedding of log σ through two linear layers. Names of parameters are those of the
published checkpoints.
"""

from collections.abc import Sequence

import ml_collections
import torch
import torch.nn.functional as F
from torch import nn

import domains
from models import layers
from models.double_backward import BatchNorm2d


def convolution(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, before a batch norm."""
    return nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """relu(x + two 3×3 convolutions); a 1×1 convolution of x where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels_in, channels_out, 3, stride)
        self.bn1 = BatchNorm2d(channels_out)
        self.conv2 = convolution(channels_out, channels_out, 3)
        self.bn2 = BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                convolution(channels_in, channels_out, 1, stride), BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(self.bn1.normalise(self.conv1(x)))
        if len(self.shortcut):
            conv, norm = self.shortcut
            x = norm.normalise(conv(x), relu=False)
        return self.bn2.normalise(h, shortcut=x)


class ResNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W) and a noise embedding (B, temb_dim).

    `blocks` and `widths` are the number of blocks and the channels of each stage; every stage but
    the first halves the resolution.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        blocks: Sequence[int],
        widths: Sequence[int],
        temb_dim: int,
    ) -> None:
        super().__init__()
        self.stages = range(1, len(widths) + 1)
        self.conv1 = convolution(channels, widths[0], 3)
        self.bn1 = BatchNorm2d(widths[0])
        for stage, width in zip(self.stages, widths):
            self.add_module(f"dense_{stage}", layers.Linear(temb_dim, width))
        channels_in = widths[0]
        for stage, width, count in zip(self.stages, widths, blocks):
            first = BasicBlock(channels_in, width, stride=1 if stage == 1 else 2)
            others = [BasicBlock(width, width, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
            channels_in = width
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        h = self.bn1.normalise(self.conv1(x))
        for stage in self.stages:
            h = getattr(self, f"layer{stage}")(h)
            h = h + getattr(self, f"dense_{stage}")(F.silu(temb))[:, :, None, None]
        return self.linear(h.mean((2, 3)))


class NoiseConditionedResNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W) at noise levels σ (B,).

    `nf` and `fourier_scale` are the width and the frequency scale of the embedding of log σ.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        nf: int,
        fourier_scale: float,
        blocks: Sequence[int],
        widths: Sequence[int],
    ) -> None:
        super().__init__()
        temb_dim = 4 * nf
        condition = [
            layers.GaussianFourierProjection(nf, fourier_scale),
            layers.Linear(2 * nf, temb_dim),
            layers.Linear(temb_dim, temb_dim),
        ]
        # Both names are those of the published checkpoints.
        self.classifier = nn.ModuleDict(
            {
                "condition_modules": nn.ModuleList(condition),
                "classifier": ResNet(channels, classes, blocks, widths, temb_dim),
            }
        )

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, blocks: Sequence[int], widths: Sequence[int]
    ) -> "NoiseConditionedResNet":
        """The network that ``config.classifier`` and ``config.data`` describe."""
        options = config.classifier
        channels = domains.images_of(config.data, f"The classifier {options.model}").channels
        return cls(channels, options.classes, options.nf, options.fourier_scale, blocks, widths)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        fourier, first, second = self.classifier["condition_modules"]
        temb = second(F.silu(first(fourier(torch.log(sigma)))))
        return self.classifier["classifier"](x, temb).to(x.dtype)
