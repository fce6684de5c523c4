"""Noise-conditioned residual classifiers (Chao et al., ICLR 2022): log p(y | x_t) at noise σ(t).

The CIFAR ResNet of He et al. (CVPR 2016): a 3×3 stem, stages of basic blocks, global average,
one linear layer. After each stage Linear(SiLU(temb)) is added to every pixel, temb being the
Fourier embedding of log σ through two linear layers. Names of parameters are those of the
published checkpoints. Nothing works in place, so that forward-mode derivatives pass through.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from models import layers


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that can repeat a training pass, see `repeated_pass`."""

    repeating = False

    def forward(self, x):
        if not (self.training and self.repeating):
            return super().forward(x)
        # PyTorch's fused operation takes its mean and variance for constants when the tangent of
        # a forward-mode derivative is differentiated: its gradient is wrong by a tenth. Written
        # out, every term is differentiated.
        pixels = (0, 2, 3)
        centred = x - x.mean(pixels, keepdim=True)
        std = torch.sqrt(centred.square().mean(pixels, keepdim=True) + self.eps)
        return centred / std * self.weight[:, None, None] + self.bias[:, None, None]


@contextlib.contextmanager
def repeated_pass(network):
    """Within the context a training pass of the same batch gives the same output once more.

    The batch norms normalise by the batch's statistics, as before, but leave their running ones
    alone, and the tangents of forward-mode derivatives can be differentiated.

    Raises:
        TypeError: `network` has a batch norm or a dropout that would not repeat itself.
    """
    strange = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    norms = [module for module in network.modules() if isinstance(module, strange)]
    for module in norms:
        if not isinstance(module, BatchNorm2d):
            raise TypeError(f"{type(module).__name__} cannot repeat a pass; use BatchNorm2d here.")
    for module in norms:
        module.repeating = True
    try:
        yield
    finally:
        for module in norms:
            module.repeating = False


def conv(channels_in, channels_out, size, stride=1):
    """A convolution without bias, before a batch norm."""
    return nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """relu(x + two 3×3 convolutions); a 1×1 convolution of x where the shape changes."""

    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.conv1 = conv(channels_in, channels_out, 3, stride)
        self.bn1 = BatchNorm2d(channels_out)
        self.conv2 = conv(channels_out, channels_out, 3)
        self.bn2 = BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                conv(channels_in, channels_out, 1, stride), BatchNorm2d(channels_out)
            )

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W) and a noise embedding (B, temb_dim).

    Args:
        blocks, widths: the number of blocks and the channels of each stage; every stage but the
            first halves the resolution.
    """

    def __init__(self, channels, classes, blocks, widths, temb_dim):
        super().__init__()
        self.stages = range(1, len(widths) + 1)
        self.conv1 = conv(channels, widths[0], 3)
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

    def forward(self, x, temb):
        h = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            noise = getattr(self, f"dense_{stage}")(F.silu(temb))
            h = getattr(self, f"layer{stage}")(h) + noise[:, :, None, None]
        return self.linear(h.mean((2, 3)))


class NoiseConditionedResNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W) at noise levels σ (B,).

    Args:
        channels: image channels.
        classes: number of classes.
        nf, fourier_scale: width and frequency scale of the embedding of log σ.
        blocks, widths: as in `ResNet`.
    """

    def __init__(self, *, channels, classes, nf, fourier_scale, blocks, widths):
        super().__init__()
        temb_dim = 4 * nf
        condition = [
            layers.GaussianFourierProjection(nf, fourier_scale),
            layers.Linear(2 * nf, temb_dim),
            layers.Linear(temb_dim, temb_dim),
        ]
        # The published files nest both under one name.
        self.classifier = nn.ModuleDict(
            {
                "condition_modules": nn.ModuleList(condition),
                "classifier": ResNet(channels, classes, blocks, widths, temb_dim),
            }
        )

    def forward(self, x, sigma):
        fourier, first, second = self.classifier["condition_modules"]
        temb = second(F.silu(first(fourier(torch.log(sigma)))))
        return self.classifier["classifier"](x, temb)


def classifier_options(config):
    """The arguments of `NoiseConditionedResNet` from ``config.classifier`` and ``config.data``."""
    classifier = config.classifier
    return {
        "channels": config.data.num_channels,
        "classes": classifier.classes,
        "nf": classifier.nf,
        "fourier_scale": classifier.fourier_scale,
    }
