"""NCSN++ (Song et al., ICLR 2021, appendix H), with the options of the published networks.

One list `all_modules` is built and traversed in the same order, so that the names and the order of
the parameters are those of the published checkpoints.
"""

import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import nn

import domains
from models import labels as labelling
from models import layers, resampling
from models.jvp import add_to_values, join_rows, split_rows
from utils import UserError, lookup, take

CHOICES = {
    "nonlinearity": ("swish",),
    "resamp_with_conv": (True,),
    "embedding_type": ("fourier", "positional"),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
}
"""Field of ``config.model`` -> its values."""


class NCSNpp(nn.Module):
    """A U-Net on images (B, C, H, W) and noise conditions (B,), giving (B, C, H, W).

    It carries tangents of Jacobian-vector products, see `forward`.

    The condition is σ for Fourier embeddings and a time label for positional ones. With
    `num_classes`, labels (B,) are a second condition; `labelling.NO_LABEL` means no label.

    Args:
        image_size: height and width, a pair.
        sigmas: (N,) descending noise levels; a buffer of the published checkpoints.
        nf, …, scale_by_sigma: as in ``config.model``.
    """

    carries_tangents = True

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "NCSNpp":
        """The network that ``config.model`` and ``config.data`` describe.

        Raises:
            UserError: an option is missing, unknown, or does not fit the images.
        """
        model = config.model
        ends = math.log(model.sigma_max), math.log(model.sigma_min)
        domain = domains.images_of(config.data, f"The model {model.name}")
        given = {
            "image_size": (domain.height, domain.width),
            "channels": domain.channels,
            "centered": domain.centered,
            "sigmas": np.exp(np.linspace(*ends, model.num_scales)),
            "num_classes": model.get("num_classes"),
        }
        names = [name for name in inspect.signature(NCSNpp).parameters if name not in given]
        options = take(model, names)
        for name, choices in CHOICES.items():
            lookup(dict.fromkeys(choices), model.get(name), f"config.model.{name}")
        return cls(**given, **options)

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        channels: int,
        sigmas: np.ndarray,
        nf: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float,
        embedding_type: str,
        fourier_scale: float,
        conditional: bool,
        resblock_type: str,
        fir: bool,
        fir_kernel: Sequence[float],
        skip_rescale: bool,
        progressive: str,
        progressive_input: str,
        progressive_combine: str,
        init_scale: float,
        scale_by_sigma: bool,
        centered: bool,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("sigmas", torch.as_tensor(sigmas, dtype=torch.float64))
        self.embedding_type = embedding_type
        self.progressive, self.progressive_input = progressive, progressive_input
        factor = 2 ** (len(ch_mult) - 1)
        for name, value in zip(("image_size", "image_width"), image_size):
            if value % factor or value < 1:
                raise UserError(
                    f"config.data.{name} is {value}; {len(ch_mult)} resolutions "
                    f"(config.model.ch_mult) need a multiple of {factor}."
                )
        if nf % 4:
            raise UserError(f"config.model.nf is {nf}; expected a multiple of 4.")
        self.nf, self.levels, self.num_res_blocks = nf, len(ch_mult), num_res_blocks
        self.channels, self.shape = channels, (channels, *image_size)
        self.attn_resolutions = tuple(attn_resolutions)
        self.conditional = conditional
        self.scale_by_sigma, self.centered = scale_by_sigma, centered

        temb_dim = 4 * nf
        up = resampling.Upsample(fir, fir_kernel)
        down = resampling.Downsample(fir, fir_kernel)

        def block(channels_in, channels_out, resample=None):
            return layers.ResnetBlock(
                channels_in,
                channels_out,
                temb_dim,
                dropout=dropout,
                skip_rescale=skip_rescale,
                init_scale=init_scale,
                resample=resample,
                nin_shortcut=resblock_type == "ddpm",
            )

        def attention(width):
            return layers.AttnBlock(width, skip_rescale, init_scale)

        modules = []
        if embedding_type == "fourier":
            modules.append(layers.GaussianFourierProjection(nf, fourier_scale))
        if conditional:
            embedding_dim = 2 * nf if embedding_type == "fourier" else nf
            modules += [layers.Linear(embedding_dim, temb_dim), layers.Linear(temb_dim, temb_dim)]

        # Down.
        modules.append(layers.Conv2d(channels, nf, 3, padding=1))
        widths = [nf]  # of the skip features for the up path
        width, pyramid_width, resolution = nf, channels, image_size[0]
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                modules.append(block(width, nf * mult))
                width = nf * mult
                if resolution in self.attn_resolutions:
                    modules.append(attention(width))
                widths.append(width)
            if level == self.levels - 1:
                break
            resolution //= 2
            if resblock_type == "biggan":
                modules.append(block(width, width, down))
            else:
                modules.append(resampling.ConvDownsample(width, width, fir, fir_kernel))
            if progressive_input == "input_skip":
                modules.append(layers.Combine(pyramid_width, width, progressive_combine))
                if progressive_combine == "cat":
                    width *= 2
            elif progressive_input == "residual":
                modules.append(resampling.ConvDownsample(pyramid_width, width, fir, fir_kernel))
                pyramid_width = width
            widths.append(width)

        # Middle.
        modules += [block(width, width), attention(width), block(width, width)]

        # Up.
        for level, mult in reversed(list(enumerate(ch_mult))):
            for _ in range(num_res_blocks + 1):
                modules.append(block(width + widths.pop(), nf * mult))
                width = nf * mult
            if resolution in self.attn_resolutions:
                modules.append(attention(width))
            if progressive == "output_skip" or (
                progressive == "residual" and level == self.levels - 1
            ):
                pyramid_width = channels if progressive == "output_skip" else width
                scale = init_scale if progressive == "output_skip" else 1.0
                modules.append(layers.GroupNorm(width))
                modules.append(layers.Conv2d(width, pyramid_width, 3, padding=1, init_scale=scale))
            elif progressive == "residual":
                modules.append(resampling.ConvUpsample(pyramid_width, width, fir, fir_kernel))
                pyramid_width = width
            if level > 0:
                resolution *= 2
                if resblock_type == "biggan":
                    modules.append(block(width, width, up))
                else:
                    modules.append(resampling.ConvUpsample(width, width, fir, fir_kernel))

        if progressive != "output_skip":
            modules.append(layers.GroupNorm(width))
            modules.append(layers.Conv2d(width, channels, 3, padding=1, init_scale=init_scale))
        self.all_modules = nn.ModuleList(modules)
        # Resampling of the pyramids, without parameters: outside of `all_modules`.
        self.pyramid_up, self.pyramid_down = up, down
        self.add = layers.ResidualSum(skip_rescale)
        # Last, so that names, order and initial weights of the rest do not depend on classes.
        self.takes_labels = num_classes is not None
        if self.takes_labels and not conditional:
            raise UserError("config.model.num_classes needs config.model.conditional.")
        if self.takes_labels:
            self.label_embedding = labelling.LabelEmbedding(num_classes, temb_dim)

    def edges(self) -> Iterator[tuple[nn.Module, bool]]:
        """Yields the convolutions that read or write images, which `compute` keeps in float32.

        The second item says whether the output is a feature map, which may be rounded to bfloat16.
        """
        for layer in self.modules():
            if not isinstance(layer, layers.Conv2d):
                continue
            if self.channels in (layer.in_channels, layer.out_channels):
                yield layer, layer.out_channels != self.channels

    def forward(
        self,
        x: torch.Tensor,
        cond: torch.Tensor,
        v: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The output (B, C, H, W); with m vectors v (m, B, C, H, W) also J v, shaped as v.

        Without `labels` a network that takes them treats all images as unlabelled.
        """
        if v is None:
            return self._rows(x, cond, 0, labels)
        rows = self._rows(join_rows(x, v), cond, len(v), labels)
        return split_rows(rows, len(v))

    def _rows(self, x, cond, tangents, labels):
        h = self.network(x, cond, tangents, labels).to(x.dtype)
        return h / self._sigma(cond, h, tangents) if self.scale_by_sigma else h

    def _sigma(self, cond, h, tangents):
        sigma = cond if self.embedding_type == "fourier" else self.sigmas[cond.long()]
        return sigma.to(h.dtype).repeat(1 + tangents)[:, None, None, None]

    def network(
        self, x: torch.Tensor, cond: torch.Tensor, tangents: int, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output before its division by σ; rows as in `layers`.

        Raises:
            ValueError: x has another shape than the network was made for.
        """
        if x.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"x has shape {(*x.shape,)}; the network takes (B, {expected}).")
        modules = iter(self.all_modules)
        if not self.centered:
            x = add_to_values(2 * x, x.new_full((1, 1, 1, 1), -1.0), tangents)
        embeddings = self._project(self._embed(modules, cond, labels))
        h, skips = self._down(modules, x, embeddings, tangents)
        h = next(modules)(h, next(embeddings), tangents)
        h = next(modules)(h, tangents)
        h = next(modules)(h, next(embeddings), tangents)
        h = self._up(modules, h, skips, embeddings, tangents)
        if self.progressive != "output_skip":
            h = next(modules)(h, tangents, layers.SWISH)
            h = next(modules)(h, tangents)
        return h

    def _embed(self, modules, cond, labels):
        if self.embedding_type == "fourier":
            embedding = next(modules)(torch.log(cond))
        else:
            embedding = layers.positional_embedding(cond, self.nf)
        if not self.conditional:
            return None
        first, second = next(modules), next(modules)
        temb = second(layers.SWISH(first(embedding.to(first.weight.dtype))))
        if not self.takes_labels:
            return temb
        if labels is None:
            labels = torch.full_like(cond, labelling.NO_LABEL, dtype=torch.long)
        return temb + self.label_embedding(labels).to(temb.dtype)

    def _project(self, temb):
        """Each residual block's projection of the noise embedding, in the blocks' order."""
        if temb is None:
            return itertools.repeat(None)
        blocks = [layer for layer in self.all_modules if isinstance(layer, layers.ResnetBlock)]
        return iter(layers.noise_projections(blocks, layers.SWISH(temb)))

    def _resample(self, module, h, embeddings, tangents):
        """Change the resolution with whichever kind of module the options gave."""
        if isinstance(module, layers.ResnetBlock):
            return module(h, next(embeddings), tangents)
        return module(h, tangents)

    def _down(self, modules, x, embeddings, tangents):
        pyramid = x
        h = next(modules)(x, tangents)
        skips = [h]
        for level in range(self.levels):
            for _ in range(self.num_res_blocks):
                h = next(modules)(h, next(embeddings), tangents)
                if h.shape[-2] in self.attn_resolutions:
                    h = next(modules)(h, tangents)
                skips.append(h)
            if level == self.levels - 1:
                break
            h = self._resample(next(modules), h, embeddings, tangents)
            if self.progressive_input == "input_skip":
                pyramid = self.pyramid_down(pyramid)
                h = next(modules)(pyramid, h, tangents)
            elif self.progressive_input == "residual":
                pyramid = next(modules)(pyramid, tangents)
                pyramid = self.add(pyramid, h)
                h = pyramid
            skips.append(h)
        return h, skips

    def _up(self, modules, h, skips, embeddings, tangents):
        pyramid = None
        for level in reversed(range(self.levels)):
            for _ in range(self.num_res_blocks + 1):
                h = next(modules)(h, next(embeddings), tangents, skips.pop())
            if h.shape[-2] in self.attn_resolutions:
                h = next(modules)(h, tangents)
            if self.progressive == "output_skip":
                normalised = next(modules)(h, tangents, layers.SWISH)
                out = next(modules)(normalised, tangents)
                pyramid = out if pyramid is None else self.pyramid_up(pyramid) + out
            elif self.progressive == "residual" and pyramid is None:
                normalised = next(modules)(h, tangents, layers.SWISH)
                pyramid = next(modules)(normalised, tangents)
            elif self.progressive == "residual":
                pyramid = next(modules)(pyramid, tangents)
                pyramid = self.add(pyramid, h)
                h = pyramid
            if level > 0:
                h = self._resample(next(modules), h, embeddings, tangents)
        return pyramid if self.progressive == "output_skip" else h


class NCSNppMod(NCSNpp):
    """NCSN++ at 32×32 between a 1×1 convolution with padding 2 and a 5×5 convolution.

    For images of 28×28 (MNIST, Fashion-MNIST).
    """

    def __init__(self, *, image_size: tuple[int, int], channels: int, **options: Any) -> None:
        if image_size != (28, 28):
            height, width = image_size
            raise UserError(
                f"config.data.image_size is {height}" + f"×{width}" * (width != height) + "; the "
                "model ncsnpp_mod takes 28 (use ncsnpp for other sizes)."
            )
        super().__init__(image_size=(32, 32), channels=channels, **options)
        # The published parameter order has the two convolutions first.
        body = self.all_modules
        del self.all_modules
        self.in_conv = layers.Conv2d(channels, channels, 1, padding=2)
        self.out_conv = layers.Conv2d(channels, channels, 5)
        self.all_modules = body

    def network(
        self, x: torch.Tensor, cond: torch.Tensor, tangents: int, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        h = super().network(self.in_conv(x, tangents), cond, tangents, labels)
        return self.out_conv(h, tangents)
