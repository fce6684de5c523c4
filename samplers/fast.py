"""The registry of fast samplers, and a fast sampler with its grid of noise levels."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch

from samplers.denoisers import Denoiser
from samplers.deterministic import (
    NoiseLike,
    deis,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    heun,
    no_callback,
    unipc,
)
from samplers.noise import PerImageNoise
from samplers.stochastic import churn, dpmpp_2m_sde
from sde_lib import SDE, ScoreFunction

SAMPLERS = {
    "euler": euler,
    "heun": heun,
    "deis": deis,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "churn": churn,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_eta2": functools.partial(dpmpp_2m_sde, eta=2.0),
}
"""Name -> sampler, a function as in `deterministic`."""


@dataclasses.dataclass(frozen=True)
class FastSampler:
    """A function of `SAMPLERS` on a grid of noise levels; a `sampling.Sampler`.

    Args:
        sde: the SDE that the score was trained with.
        sigmas: descending floats, the last one 0, see `grids`.
        interval: of guidance, see `Denoiser`.
    """

    function: Callable
    sde: SDE
    sigmas: list[float]
    interval: tuple[float, float] | None = None

    @property
    def steps(self) -> int:
        """The number of callback calls."""
        return len(self.sigmas) - 1

    def stream(self, of_round: tuple, of_images: tuple) -> tuple:
        """The stream of the images: each image has its own random numbers."""
        return of_images

    def noise(self, device: torch.device, stream: Sequence, count: int) -> PerImageNoise:
        """The noise of `count` images; the last item of `stream` is the first image's index."""
        *stream, first = stream
        return PerImageNoise(device, range(first, first + count), *stream)

    def __call__(
        self,
        score: ScoreFunction,
        latents: torch.Tensor,
        randn_like: NoiseLike = torch.randn_like,
        callback: Callable[[], object] = no_callback,
    ) -> tuple[torch.Tensor, int]:
        """Samples, shaped as the standard normal `latents` (B, ...), and the NFE.

        Between evaluations x is float64, so that σ = 50 and small steps lose no digits.
        """
        denoiser = Denoiser(score, self.sde, interval=self.interval)
        x = latents.double() * self.sigmas[0]
        x = self.function(denoiser, x, self.sigmas, randn_like, callback)
        return x.to(latents.dtype), denoiser.nfe
