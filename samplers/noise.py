"""Standard normal and uniform noise from the counter-based streams of `utils.random_stream`."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from utils import device_seed, random_stream


class SeededNoise:
    """Float32 noise of one random stream: equal purposes and numbers give equal noise.

    For the CPU NumPy draws. A GPU draws its own noise, without synchronisation; the values differ.
    """

    def __init__(self, device: torch.device | str, purpose: str, *numbers: int) -> None:
        self.device = torch.device(device)
        if self.device.type == "cpu":
            self.stream = random_stream(purpose, *numbers)
        else:
            self.generator = torch.Generator(self.device)
            self.generator.manual_seed(device_seed(purpose, *numbers))

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal noise."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.stream.standard_normal(shape, np.float32))
        return torch.randn(shape, generator=self.generator, device=self.device)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        return self.randn(x.shape)

    def rand(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform noise in [0, 1)."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.stream.random(shape, np.float32))
        return torch.rand(shape, generator=self.generator, device=self.device)


class PerImageNoise:
    """Standard normal noise (B, ...) whose row b depends only on the image b and the draw.

    Draw k of an image is the k-th of `random_stream(purpose, *numbers, image)`, in any batch and
    process. The host also draws for a GPU, the same noise. It draws while the GPU computes, and the
    copy is asynchronous.

    Args:
        device: the device of the noise.
        images: the indices of the B images.
        purpose, numbers: of the streams.
    """

    def __init__(
        self, device: torch.device | str, images: Iterable[int], purpose: str, *numbers: int
    ) -> None:
        self.device = torch.device(device)
        self.streams = [random_stream(purpose, *numbers, image) for image in images]

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """The next draw, float32 of `shape` (B, ...)."""
        # A new buffer each time: the copy of the last one to the GPU may not be finished.
        noise = torch.empty(shape, pin_memory=self.device.type == "cuda")
        for row, stream in zip(noise.numpy(), self.streams, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return noise.to(self.device, non_blocking=True)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        """The next draw, of the shape and dtype of `x`."""
        return self.randn(x.shape).to(x.dtype)
