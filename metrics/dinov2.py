"""DINOv2 features (Oquab et al., 2023, arXiv 2304.07193): the class token of a vision transformer.

Fréchet distances on them agree better with people's judgement than those on Inception's (Stein et
al., NeurIPS 2023). The network is ViT-L/14: patches of 14×14 pixels, 24 blocks with norms in front
(Dosovitskiy et al., ICLR 2021) whose branches are scaled by learned vectors (LayerScale, Touvron
et al., ICCV 2021). Names of parameters are those of the published file, dinov2_vitl14_pretrain.pth.
"""

import dataclasses
import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from metrics.extractors import channels_first, hashed, in_colour, plain_weights
from models.compute import exact_products
from utils import UserError

SIDE = 224  # that images are resized to
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which it was trained with
EPS = 1e-6  # of all norms


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes of a transformer; `grid`² patches had the images that it was last trained on."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    grid: int = 37


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Self-attention over tokens x (B, T, width), with as many heads."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + γ₁·attention(norm(x)), and of that the same with an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, width, rows, columns) of images (B, 3, H, W)."""
        return self.proj(x)


class VisionTransformer(nn.Module):
    """Images (B, 3, H, W) of normalised colours to class tokens (B, width)."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        width = sizes.width
        self.grid = sizes.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training alone
        self.patch_embed = Patches(width, sizes.patch)
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """Embeddings (1, 1 + rows·columns, width): the patches' interpolated bicubically."""
        if (rows, columns) == (self.grid, self.grid):
            return self.pos_embed
        own, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        maps = patches.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        # The published network asks for a tenth of a patch more, which shifts the positions.
        scale = tuple((size + 0.1) / self.grid for size in (rows, columns))
        maps = F.interpolate(maps, scale_factor=scale, mode="bicubic")
        return torch.cat([own, maps.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.patch_embed(x)
        tokens = torch.cat(
            [self.cls_token.expand(len(x), -1, -1), maps.flatten(2).transpose(1, 2)], dim=1
        )
        tokens = tokens + self.positions(*maps.shape[2:])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])


def resized(images: np.ndarray) -> np.ndarray:
    """uint8 images (B, H, W, 3) at 224×224, by PIL, bicubically."""
    size = (SIDE, SIDE)
    return np.stack(
        [np.array(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in images]
    )


class DINOv2Features:
    """Class tokens of DINOv2's ViT-L/14 behind the last norm, 1,024 wide; there are no logits.

    Images are resized to 224×224 and normalised by ImageNet's means and standard deviations. The
    name has the first digits of the weight file's SHA-256: which file it is, its user says.

    Args:
        device: where the network runs.
        weights: the weight file, read weights-only.

    Raises:
        UserError: no file is named, or it is unreadable or of another network.
    """

    architecture = Architecture()
    logit_width = 0

    def __init__(self, device: torch.device, weights: str | os.PathLike | None) -> None:
        if weights is None:
            raise UserError(
                "The features dinov2 need DINOv2's weights: fetch dinov2_vitl14_pretrain.pth and "
                "name it with --config.eval.dinov2_weights."
            )
        data, digest = hashed(weights, "The DINOv2 weights")
        self.network = VisionTransformer(self.architecture)
        try:
            self.network.load_state_dict(plain_weights(data, weights))
        except (RuntimeError, TypeError, AttributeError) as error:
            gist = " ".join(str(error).split())[:300]
            raise UserError(f"{weights} does not hold DINOv2's ViT-L/14: {gist}") from None
        self.network.to(device).eval().requires_grad_(False)
        self.device = device
        self.name = f"dinov2-vitl14-{digest[:8]}"
        self.pool_width = self.architecture.width

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        with torch.inference_mode(), exact_products():
            x = channels_first(resized(in_colour(images)), self.device)
            pool = self.network((x / 255 - mean) / std)
        return pool.cpu().numpy(), np.empty((len(images), 0), np.float32)
