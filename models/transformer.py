"""A transformer on the patches of an image (Peebles and Xie, "Scalable Diffusion Models with
Transformers", ICCV 2023), as a score network of the VE SDE.

Its Jacobian-vector products are taken by `torch.func.jvp` (`models.jvp`).
"""

import math

import ml_collections
import torch
import torch.nn.functional as F
from torch import nn

import domains
from models import layers
from utils import UserError, take


class Transformer(nn.Module):
    """Scores (B, C, H, W) of images x (B, C, H, W) at noise levels σ (B,).

    With u the images in [−1, 1] and σ the noise there, s = −u/(1 + σ²) + F/(σ√(1 + σ²)). The first
    term is the score of a standard normal distribution plus the noise; F(u/√(1 + σ²), σ) is learnt
    (the preconditioning of Karras et al., NeurIPS 2022, table 1, as a score). F splits its input
    into patches of p×p pixels, N = (H/p)·(W/p) tokens (B, N, width), transformed by `depth` blocks.
    Initially F is zero.

    Args:
        image_size: height and width, a pair.
        centered: whether the images are in [−1, 1] already, not in [0, 1].
        width: of tokens and of the noise embedding.
        mlp_ratio: hidden features of a block's perceptron for each of a token.
        fourier_scale: of the random frequencies that log σ is embedded by.

    Raises:
        UserError: a number is not divisible by the patch size or heads.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        channels: int,
        centered: bool,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
        fourier_scale: float,
    ) -> None:
        super().__init__()
        for name, value in zip(("image_size", "image_width"), image_size):
            _require_divisible(f"config.data.{name}", value, "patch_size", patch_size)
        _require_divisible("config.model.width", width, "heads", heads)
        _require_divisible("config.model.width", width, "2, for sines and cosines,", 2)
        self.centered, self.patch_size = centered, patch_size
        self.patches = layers.Conv2d(channels, width, patch_size, stride=patch_size)
        tokens = math.prod(value // patch_size for value in image_size)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.fourier = layers.GaussianFourierProjection(width // 2, fourier_scale)
        self.embed = nn.Sequential(
            layers.Linear(width, width), nn.SiLU(), layers.Linear(width, width), nn.SiLU()
        )
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio * width, dropout) for _ in range(depth)
        )
        self.norm = AdaptiveNorm(width)
        self.head = zero_linear(width, channels * patch_size**2)

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Transformer":
        """The network that ``config.model`` and ``config.data`` describe.

        Raises:
            UserError: an option is missing, or the SDE is not the continuous VE.
        """
        training = config.training
        domain = domains.images_of(config.data, "The model transformer")
        if training.sde != "vesde" or not training.continuous:
            raise UserError(
                "The model transformer takes noise levels of the continuous VE SDE; set "
                "config.training.sde to vesde and config.training.continuous to True."
            )
        names = "patch_size", "width", "depth", "heads", "mlp_ratio", "dropout", "fourier_scale"
        return cls(
            image_size=(domain.height, domain.width),
            channels=domain.channels,
            centered=domain.centered,
            **take(config.model, names),
        )

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        noise = self.embed(self.fourier(torch.log(sigma)).to(self.positions.dtype))
        sigma = sigma.to(x.dtype)[:, None, None, None]
        u, sigma, unit = (x, sigma, 1) if self.centered else (2 * x - 1, 2 * sigma, 2)
        scale = torch.rsqrt(1 + sigma**2)
        h = self.patches(u * scale)
        rows, columns = h.shape[2:]
        tokens = h.flatten(2).mT + self.positions
        for block in self.blocks:
            tokens = block(tokens, noise)
        h = self.head(self.norm(tokens, noise)).mT.unflatten(2, (rows, columns))
        added = F.pixel_shuffle(h, self.patch_size).to(x.dtype)
        return unit * scale * (added / sigma - scale * u)


class AdaptiveNorm(nn.Module):
    """(1 + a)·n + b of tokens (B, N, width) normalised to n, a and b linear in a noise embedding.

    Initially a and b are zero. The embedding is (B, width).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero_linear(width, 2 * width)

    def forward(self, tokens: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(noise)[:, None].chunk(2, dim=2)
        return self.norm(tokens) * (1 + scale) + shift


class Block(nn.Module):
    """A transformer block on tokens (B, N, width) with gated updates.

    The gates are linear in the noise embedding (B, width) and initially zero, so that the block is
    the identity ("adaLN-Zero").
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = AdaptiveNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = AdaptiveNorm(width)
        self.perceptron = nn.Sequential(
            layers.Linear(width, hidden), nn.GELU(), layers.Linear(hidden, width)
        )
        self.gates = zero_linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        first, second = self.gates(noise)[:, None].chunk(2, dim=2)
        tokens = tokens + first * self.dropout(self.attention(self.norm_1(tokens, noise)))
        return tokens + second * self.dropout(self.perceptron(self.norm_2(tokens, noise)))


class Attention(nn.Module):
    """Self-attention of tokens (B, N, width) with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = layers.Linear(width, 3 * width)
        self.out = layers.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        parts = self.queries_keys_values(tokens).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def zero_linear(features_in: int, features_out: int) -> nn.Linear:
    """A linear layer whose weight and bias are initially zero."""
    linear = nn.Linear(features_in, features_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _require_divisible(name, value, of, divisor):
    if value % divisor:
        raise UserError(f"{name} is {value}; expected a multiple of {of} {divisor}.")
