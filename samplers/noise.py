"""Noise that belongs to an image, whatever else is drawn beside it."""

from collections.abc import Iterable, Sequence

import torch

from utils import seed_for


class PerImageNoise:
    """Standard normal noise (B, ...) whose row b depends on the image b and the draw alone.

    Draw k of an image is the k-th from a generator of its own, seeded by `seed_for(purpose,
    *numbers, image)`: how images are shared out among batches and processes changes none of them.
    The generators are on the CPU, so that a GPU gets the same noise; they work while it computes,
    and nothing waits for the copy.

    Args:
        device: where the noise is wanted.
        images: the numbers of the B images.
        purpose, numbers: the stream, see `seed_for`.
    """

    def __init__(
        self, device: torch.device | str, images: Iterable[int], purpose: str, *numbers: int
    ) -> None:
        self.device = torch.device(device)
        self.generators = [
            torch.Generator().manual_seed(seed_for(purpose, *numbers, image)) for image in images
        ]

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """The next draw, float32 of `shape` (B, ...)."""
        # A new buffer each time: that of the last draw may still be on its way to the GPU.
        noise = torch.empty(shape, pin_memory=self.device.type == "cuda")
        for row, generator in zip(noise, self.generators, strict=True):
            row.normal_(generator=generator)
        return noise.to(self.device, non_blocking=True)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        """The next draw, of the shape and dtype of `x`."""
        return self.randn(x.shape).to(x.dtype)
