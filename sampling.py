"""Predictor-corrector and probability-flow sampling (Song et al., ICLR 2021).

A `Sampler` takes a score, standard normal `latents` and a `randn_like` for the noise of its steps,
drawn in this order: per step the correctors' noises, then the predictor's. Guidance and energies
wrap the score; samplers need no changes.

A predictor is a function (reverse_sde, x, t, randn_like) → (x, mean) and an entry of `PREDICTORS`;
a corrector is a function (sde, score, x, t, snr, randn_like) → x and an entry of `CORRECTORS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import torch

from samplers import fast, grids
from samplers.deterministic import NoiseLike, no_callback
from samplers.fast import FastSampler
from samplers.noise import SeededNoise
from samplers.ode import MAX_NFE, ODECallback, integrate
from sde_lib import SDE, VPSDE, ReverseSDE, ScoreFunction, expand
from utils import UserError, lookup, require_positive

# ---------------------------------------------------------------- predictors


def reverse_diffusion(
    reverse: ReverseSDE, x: torch.Tensor, t: torch.Tensor, randn_like: NoiseLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_{i−1} = x_i − f + G z, with the discretised reverse SDE (Song et al., appendix E)."""
    f, G = reverse.discretize(x, t)
    noise = randn_like(x)
    mean = x - f
    return mean + expand(G, x) * noise, mean


def euler_maruyama(
    reverse: ReverseSDE, x: torch.Tensor, t: torch.Tensor, randn_like: NoiseLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of dt = −1/N of the reverse SDE."""
    dt = -1 / reverse.forward.N
    noise = randn_like(x)
    drift, diffusion = reverse.sde(x, t)
    mean = x + drift * dt
    return mean + expand(diffusion, x) * math.sqrt(-dt) * noise, mean


def ancestral_sampling(
    reverse: ReverseSDE, x: torch.Tensor, t: torch.Tensor, randn_like: NoiseLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ancestral sampler of the discrete chain (Song et al., appendix F; VE and VP)."""
    mean, std = reverse.forward.ancestral(x, t, reverse.score(x, t))
    return mean + expand(std, x) * randn_like(x), mean


def no_predictor(
    reverse: ReverseSDE, x: torch.Tensor, t: torch.Tensor, randn_like: NoiseLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave x as it is."""
    return x, x


PREDICTORS = {
    "reverse_diffusion": reverse_diffusion,
    "euler_maruyama": euler_maruyama,
    "ancestral_sampling": ancestral_sampling,
    "none": no_predictor,
}

# ---------------------------------------------------------------- correctors


def _langevin_step(score, x, step, noise):
    return x + expand(step, x) * score + expand(torch.sqrt(2 * step), x) * noise


def langevin(
    sde: SDE,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    snr: float,
    randn_like: NoiseLike,
) -> torch.Tensor:
    """Langevin dynamics of step 2α(snr·‖z‖/‖s‖)², both norms averaged over the batch."""
    gradient = score(x, t)
    noise = randn_like(x)
    gradient_norm = gradient.flatten(1).norm(dim=1).mean()
    noise_norm = noise.flatten(1).norm(dim=1).mean()
    step = 2 * sde.alpha(t) * (snr * noise_norm / gradient_norm) ** 2
    return _langevin_step(gradient, x, step, noise)


def annealed_langevin(
    sde: SDE,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    snr: float,
    randn_like: NoiseLike,
) -> torch.Tensor:
    """Annealed Langevin dynamics of step 2α(snr·std)² (Song and Ermon 2019)."""
    _, std = sde.marginal_prob(x, t)
    step = 2 * sde.alpha(t) * (snr * std) ** 2
    return _langevin_step(score(x, t), x, step, randn_like(x))


def no_corrector(
    sde: SDE,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    snr: float,
    randn_like: NoiseLike,
) -> torch.Tensor:
    """Leave x as it is."""
    return x


CORRECTORS = {"langevin": langevin, "ald": annealed_langevin, "none": no_corrector}

# ---------------------------------------------------------------- samplers


class CountedScore:
    """A score that counts its evaluations in `nfe`, one per call, also for a guided score."""

    def __init__(self, score: ScoreFunction) -> None:
        self.score = score
        self.nfe = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.nfe += 1
        return self.score(x, t)


@dataclasses.dataclass(frozen=True)
class PCSampler:
    """Algorithm 1 of Song et al. (2021) on N times from T to eps.

    Args:
        sde: the forward SDE; its N is the number of steps.
        predictor, corrector: values of `PREDICTORS` and `CORRECTORS`.
        snr: the corrector's signal-to-noise ratio.
        n_steps: corrector updates before each predictor update.
        probability_flow: predict along the probability-flow ODE.
        noise_removal: return the last predictor's mean.
        last_step_snr: without noise_removal, add noise of scale 2·last_step_snr² at the end.
    """

    sde: SDE
    predictor: object
    corrector: object
    snr: float
    n_steps: int = 1
    probability_flow: bool = False
    noise_removal: bool = True
    last_step_snr: float = 0.0

    @property
    def steps(self) -> int:
        """The number of callback calls."""
        return self.sde.N

    def stream(self, of_round: tuple, of_images: tuple) -> tuple:
        """The stream of the round: Langevin's step size couples its images."""
        return of_round

    def noise(self, device: torch.device, stream: Sequence, count: int) -> SeededNoise:
        """The noise of a round of `count` images."""
        return SeededNoise(device, *stream)

    @torch.no_grad()
    def __call__(
        self,
        score: ScoreFunction,
        latents: torch.Tensor,
        randn_like: NoiseLike = torch.randn_like,
        callback: Callable[[], object] = no_callback,
    ) -> tuple[torch.Tensor, int]:
        """Samples (B, C, H, W) and the NFE: N·(n_steps + 1), fewer if `none` replaces a part.

        `callback()` is called after each of the N steps.
        """
        score = CountedScore(score)
        reverse = ReverseSDE(self.sde, score, self.probability_flow)
        x = latents * self.sde.prior_std()
        mean = x
        for time in torch.linspace(self.sde.T, self.sde.sampling_eps, self.sde.N, device=x.device):
            t = time.expand(len(x))
            for _ in range(self.n_steps):
                x = self.corrector(self.sde, score, x, t, self.snr, randn_like)
            x, mean = self.predictor(reverse, x, t, randn_like)
            callback()
        if self.noise_removal:
            return mean, score.nfe
        if self.last_step_snr:
            x = x + 2 * self.last_step_snr**2 * randn_like(x)
        return x, score.nfe


@dataclasses.dataclass(frozen=True)
class ODESampler:
    """The probability flow from T to eps with RK45 (Dormand-Prince), step sizes by tolerance.

    With `noise_removal`, one reverse-diffusion mean at eps follows. More than `max_nfe`
    evaluations of the flow raise an error.
    """

    sde: SDE
    rtol: float
    atol: float
    noise_removal: bool = True
    max_nfe: int = MAX_NFE

    steps = None  # the tolerances determine it
    stream, noise = PCSampler.stream, PCSampler.noise

    @torch.no_grad()
    def __call__(
        self,
        score: ScoreFunction,
        latents: torch.Tensor,
        randn_like: NoiseLike = torch.randn_like,
        callback: ODECallback = no_callback,
    ) -> tuple[torch.Tensor, int]:
        """Samples (B, C, H, W) and the NFE, the last mean's evaluation included.

        Raises:
            UserError: see `integrate`.
        """
        eps, flow = self.sde.sampling_eps, ReverseSDE(self.sde, score, probability_flow=True)
        x, nfe = integrate(
            lambda t, x: flow.sde(x, t.expand(len(x)))[0],
            latents * self.sde.prior_std(),
            self.sde.T,
            eps,
            rtol=self.rtol,
            atol=self.atol,
            max_nfe=self.max_nfe,
            callback=callback,
        )
        x = x.float()
        if self.noise_removal:
            t = torch.full((len(x),), eps, device=x.device)
            _, x = reverse_diffusion(ReverseSDE(self.sde, score), x, t, randn_like)
            nfe += 1
        return x, nfe


Sampler = PCSampler | ODESampler | FastSampler


def pc_sampler(sampling: ml_collections.ConfigDict, sde: SDE) -> PCSampler:
    """The entry `pc` of `SAMPLERS`."""
    if isinstance(sde, VPSDE) and sde.beta_max >= sde.N:  # some β_i, up to β1/N, would reach 1
        raise UserError(
            f"The sampler pc would take {sde.N} steps, but with config.model.beta_max at "
            f"{sde.beta_max} it needs more; set config.sampling.num_scales, or where that is not "
            "set config.model.num_scales."
        )
    return PCSampler(
        sde=sde,
        predictor=lookup(PREDICTORS, sampling.predictor, "config.sampling.predictor"),
        corrector=lookup(CORRECTORS, sampling.corrector, "config.sampling.corrector"),
        snr=sampling.snr,
        n_steps=sampling.n_steps_each,
        probability_flow=sampling.probability_flow,
        noise_removal=sampling.noise_removal,
        last_step_snr=sampling.last_step_snr,
    )


def ode_sampler(sampling: ml_collections.ConfigDict, sde: SDE) -> ODESampler:
    """The entry `ode` of `SAMPLERS`."""
    names = "rtol", "atol", "noise_removal", "max_nfe"
    return ODESampler(sde, **{name: sampling[name] for name in names})


def fast_sampler(function: Callable, sampling: ml_collections.ConfigDict, sde: SDE) -> FastSampler:
    """An entry of `SAMPLERS`, once its first argument, a `function` of `samplers.fast`, is set."""
    if sampling.num_scales is not None:
        raise UserError(
            f"config.sampling.num_scales is {sampling.num_scales}, but the sampler "
            f"{sampling.method} takes config.sampling.steps."
        )
    require_positive(sampling.steps, "config.sampling.steps")
    grid = lookup(grids.GRIDS, sampling.grid, "config.sampling.grid")
    interval = tuple(sampling.guidance_interval) or None
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise UserError(
            f"config.sampling.guidance_interval is {interval}; expected two noise levels, the "
            "smaller one first, or () for guidance everywhere."
        )
    return FastSampler(function, sde, grids.of_sde(sde, sampling.steps, grid), interval)


SAMPLERS = {
    "pc": pc_sampler,
    "ode": ode_sampler,
    **{name: functools.partial(fast_sampler, each) for name, each in fast.SAMPLERS.items()},
}
"""``config.sampling.method`` -> a function of (config.sampling, SDE) that builds the sampler."""

# The fields of ``config.sampling`` that each sampler reads.
FIELDS = {
    "pc": (
        *("predictor", "corrector", "snr", "n_steps_each", "probability_flow", "noise_removal"),
        *("last_step_snr", "num_scales"),
    ),
    "ode": ("atol", "rtol", "noise_removal"),
}
FAST_FIELDS = ("steps", "grid", "guidance_interval")


def from_config(sampling: ml_collections.ConfigDict, sde: SDE) -> Sampler:
    """The sampler that ``config.sampling`` describes, for a score that was trained with `sde`.

    It is a function: ``sampler(score, latents)``, with standard normal latents (B, …), returns
    samples in the model's range, shaped alike, and the number of evaluations of the score.
    ``sampling.num_scales`` sets the number of steps of pc, by default the SDE's.

    Raises:
        UserError: an unknown method, predictor, corrector or grid, a setting of another method,
            or too few steps for the SDE.
    """
    build = lookup(SAMPLERS, sampling.method, "config.sampling.method")
    if sampling.method in FIELDS and sampling.guidance_interval:
        raise UserError(
            f"config.sampling.guidance_interval is for the samplers {', '.join(fast.SAMPLERS)}; "
            f"{sampling.method} guides at every noise level."
        )
    if sampling.num_scales is not None:
        sde = dataclasses.replace(sde, N=sampling.num_scales)
    return build(sampling, sde)


def settings(sampling: ml_collections.ConfigDict, guided: bool) -> dict[str, Any]:
    """The fields of ``config.sampling`` that samples depend on, a dict.

    They are `method`, the fields that its sampler reads and, if `guided`, `scaling_factor`.
    """
    names = (
        "method",
        *FIELDS.get(sampling.method, FAST_FIELDS),
        *(("scaling_factor",) if guided else ()),
    )
    return {name: value for name, value in sampling.to_dict().items() if name in names}
