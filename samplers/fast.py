"""The samplers by name, and one of them with a grid as the commands use it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch

from samplers.denoisers import Counted, Denoiser, GuidanceInterval
from samplers.deterministic import (
    Denoising,
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
from samplers.stochastic import RestartInterval, churn, dpmpp_2m_sde, restart
from sde_lib import SDE


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler and what is known of it; the costs are for grids that end with 0.

    Attributes:
        function: the sampler, see `deterministic`.
        order: of its convergence as σ's steps become small; without its noise, if it adds any.
        evaluations: of the denoiser in each step but the last, which needs one.
        stochastic: whether it adds noise.
        intervals: its restarts.
    """

    function: Callable
    order: int
    evaluations: int = 1
    stochastic: bool = False
    intervals: tuple[RestartInterval, ...] = ()

    def steps(self, count: int) -> int:
        """How often the callback is called on a grid of `count` steps: restarts add theirs."""
        return count + sum(each.steps * each.repeats for each in self.intervals)

    def nfe(self, count: int) -> int:
        """Evaluations of the denoiser on a grid of `count` steps."""
        return self.evaluations * (self.steps(count) - 1) + 1


def restarted(method: Method, *intervals: RestartInterval) -> Method:
    """The Method that adds restarts to another."""
    function = functools.partial(restart, sampler=method.function, intervals=intervals)
    return dataclasses.replace(method, function=function, stochastic=True, intervals=intervals)


HEUN = Method(heun, order=2, evaluations=2)

SAMPLERS = {
    "euler": Method(euler, order=1),
    "heun": HEUN,
    "deis": Method(deis, order=4),
    "dpmpp_2m": Method(dpmpp_2m, order=2),
    "dpmpp_3m": Method(dpmpp_3m, order=3),
    "unipc": Method(unipc, order=4),
    "churn": Method(churn, order=2, evaluations=2, stochastic=True),
    "dpmpp_2m_sde": Method(dpmpp_2m_sde, order=2, stochastic=True),
    "dpmpp_2m_sde_eta2": Method(functools.partial(dpmpp_2m_sde, eta=2.0), order=2, stochastic=True),
    "restart": restarted(HEUN, RestartInterval(0.06, 0.3, steps=2, repeats=10)),
}


@dataclasses.dataclass(frozen=True)
class FastSampler:
    """A method on a grid of noise levels, called as the samplers of sampling.py are.

    Args:
        sde: that the score was trained with.
        sigmas: descending floats, the last one 0, see `grids`.
        interval: (σ_lo, σ_hi) outside of which a `GuidedScore` is not guided; None: nowhere.
    """

    method: Method
    sde: SDE
    sigmas: list[float]
    interval: tuple[float, float] | None = None

    @property
    def steps(self) -> int:
        """How often the callback is called."""
        return self.method.steps(len(self.sigmas) - 1)

    def stream(self, of_round: tuple, of_images: tuple) -> tuple:
        """Which of two streams of random numbers a round draws from: every image has its own."""
        return of_images

    def noise(self, device: torch.device, stream: Sequence, count: int) -> PerImageNoise:
        """The noise of `count` images; the last number of the `stream` is the first one's."""
        *stream, first = stream
        return PerImageNoise(device, range(first, first + count), *stream)

    def denoiser(self, score: Callable) -> Denoiser | GuidanceInterval:
        """What the method is given for a `score(x, t)`."""
        whole = Denoiser(score, self.sde)
        if self.interval is None:
            return whole
        return GuidanceInterval(whole, Denoiser(score.unguided, self.sde), *self.interval)

    def __call__(
        self,
        score: Callable,
        latents: torch.Tensor,
        randn_like: NoiseLike = torch.randn_like,
        callback: Callable[[], object] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """Samples, shaped as the standard normal `latents` (B, ...), and the NFE."""
        return self.draw(self.denoiser(score), latents, randn_like, callback)

    @torch.no_grad()
    def draw(
        self,
        denoiser: Denoising,
        latents: torch.Tensor,
        randn_like: NoiseLike = torch.randn_like,
        callback: Callable[[], object] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """The same with a denoiser in place of the score.

        Between the evaluations x is float64, in which neither σ = 50 nor small steps round.
        """
        counted = Counted(denoiser)
        x = latents.double() * self.sigmas[0]
        x = self.method.function(counted, x, self.sigmas, randn_like, callback or no_callback)
        return x.to(latents.dtype), counted.nfe
