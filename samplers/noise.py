"""Noise that belongs to an image, whatever else is drawn beside it."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from utils import random_stream


class PerImageNoise:
    """Standard normal noise (B, ...) whose row b depends on the image b and the draw alone.

    Draw k of an image is the k-th of `random_stream(purpose, *numbers, image)`: how images are
    shared out among batches and processes changes none of them. The host draws for a GPU too, which
    gets the same noise. It draws while the GPU computes, and nothing waits for the copy.

    Args:
        device: where the noise is wanted.
        images: the numbers of the B images.
        purpose, numbers: of the streams, see `utils.random_stream`.
    """

    def __init__(
        self, device: torch.device | str, images: Iterable[int], purpose: str, *numbers: int
    ) -> None:
        self.device = torch.device(device)
        self.streams = [random_stream(purpose, *numbers, image) for image in images]

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """The next draw, float32 of `shape` (B, ...)."""
        # A new buffer each time: that of the last draw may still be on its way to the GPU.
        noise = torch.empty(shape, pin_memory=self.device.type == "cuda")
        for row, stream in zip(noise.numpy(), self.streams, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return noise.to(self.device, non_blocking=True)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        """The next draw, of the shape and dtype of `x`."""
        return self.randn(x.shape).to(x.dtype)
