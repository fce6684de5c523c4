"""Noise-conditioned residual classifiers (Chao et al., ICLR 2022): log p(y | x_t) at noise σ(t).

The CIFAR ResNet of He et al. (CVPR 2016): a 3×3 stem, stages of basic blocks, global average,
one linear layer. After each stage Linear(SiLU(temb)) is added to every pixel, temb being the
Fourier embedding of log σ through two linear layers. Names of parameters are those of the
published checkpoints. As in NCSN++, directional derivatives can be pushed beside the activations;
`layers` says how the rows with `tangents` are laid out.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

import distributed
from models import layers

relu = layers.ACTIVATIONS["relu"]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that pushes tangents and can repeat a training pass.

    In training x̂ = (x − mean)/std with the batch's statistics, and its tangent is
    dx̂ = (dx − mean(dx) − x̂·mean(x̂·dx))/std; in eval mode the running ones are constants. The batch
    is that of all processes that train together. See `repeated_pass` for `repeating`.
    """

    repeating = False

    def forward(self, x, tangents=0):
        if not (tangents or (self.training and (self.repeating or distributed.size() > 1))):
            return super().forward(x)
        values, d = layers.split_rows(x, tangents)
        pixels = (-4, -2, -1)
        if self.training:
            mean = distributed.mean(values.mean(pixels, keepdim=True))
            variance = distributed.mean((values - mean).square().mean(pixels, keepdim=True))
            if not self.repeating:
                self._count(mean, variance, values.numel() // self.num_features)
        else:
            mean, variance = self.running_mean[:, None, None], self.running_var[:, None, None]
        scale = torch.rsqrt(variance + self.eps)
        normal = (values - mean) * scale
        if self.training:
            both = torch.stack(
                [d.mean(pixels, keepdim=True), (normal * d).mean(pixels, keepdim=True)]
            )
            shift, along = distributed.mean(both)
            d = d - shift - normal * along
        rows = layers.join_rows(normal, d * scale) * self.weight[:, None, None]
        return layers.add_to_values(rows, self.bias[:, None, None], tangents)

    @torch.no_grad()
    def _count(self, mean, variance, pixels):
        """Let the running statistics follow a batch; `pixels` of each channel are here."""
        pixels *= distributed.size()
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.flatten(), self.momentum)
        self.running_var.lerp_(variance.flatten() * pixels / (pixels - 1), self.momentum)


@contextlib.contextmanager
def repeated_pass(network):
    """Within the context a training pass of the same batch gives the same output once more.

    The batch norms normalise by the batch's statistics, as before, but leave their running ones
    alone.

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

    def forward(self, x, tangents=0):
        h = relu(self.bn1(self.conv1(x), tangents), tangents)
        h = self.bn2(self.conv2(h), tangents)
        if len(self.shortcut):
            convolution, norm = self.shortcut
            x = norm(convolution(x), tangents)
        return relu(h + x, tangents)


class ResNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W) and a noise embedding (B, temb_dim).

    It can push tangents through beside the images; its rows are as in `layers`.

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

    def forward(self, x, temb, tangents=0):
        h = relu(self.bn1(self.conv1(x), tangents), tangents)
        for stage in self.stages:
            for block in getattr(self, f"layer{stage}"):
                h = block(h, tangents)
            noise = getattr(self, f"dense_{stage}")(F.silu(temb))
            h = layers.add_to_values(h, noise[:, :, None, None], tangents)
        h = F.linear(h.mean((2, 3)), self.linear.weight)
        return layers.add_to_values(h, self.linear.bias, tangents)


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

    def forward(self, x, sigma, directions=None):
        """The logits, and with `directions` v (m, B, C, H, W) their derivatives too.

        Returns:
            The logits (B, classes); with `directions` the logits and J v (m, B, classes).
        """
        fourier, first, second = self.classifier["condition_modules"]
        temb = second(F.silu(first(fourier(torch.log(sigma)))))
        if directions is None:
            return self.classifier["classifier"](x, temb).to(x.dtype)
        tangents = len(directions)
        rows = self.classifier["classifier"](layers.join_rows(x, directions), temb, tangents)
        return layers.split_rows(rows.to(x.dtype), tangents)


def classifier_options(config):
    """The arguments of `NoiseConditionedResNet` from ``config.classifier`` and ``config.data``."""
    classifier = config.classifier
    return {
        "channels": config.data.num_channels,
        "classes": classifier.classes,
        "nf": classifier.nf,
        "fourier_scale": classifier.fourier_scale,
    }
