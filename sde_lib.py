"""Stochastic differential equations dx = f(x, t) dt + g(t) dw on t in [0, 1].

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(ICLR 2021): the variance-exploding (VE), variance-preserving (VP) and sub-VP SDE, their
discretisations on N steps, and their reverse-time versions; and the VP SDE of the cosine schedule.
Times `t` have shape (B,), images `x` (B, C, H, W) or any (B, ...). A new SDE is a subclass of `SDE`
and an entry of `SDES`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import ml_collections
import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from utils import UserError, lookup, take

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""s (B, ...) at x (B, ...) and t (B,): what samplers, guidance, DSM and likelihoods take."""


def expand(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Append axes to per-image `values` (B,) so that they broadcast over `x` (B, ...)."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def math_or_torch(name: str, x: float | torch.Tensor) -> float | torch.Tensor:
    """The function `name` of `math`, or of `torch` where `x` is a tensor."""
    return getattr(torch if isinstance(x, torch.Tensor) else math, name)(x)


def perturb(
    sde: "SDE", x: torch.Tensor, t: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t = mean + std·z, shaped as `x`, and std (B,)."""
    mean, std = sde.marginal_prob(x, t)
    return mean + expand(std, x) * z, std


class SDE:
    """The interface of an SDE for samplers, losses and likelihoods; `N` is its number of steps.

    Attributes:
        T: the largest time.
        sampling_eps: smallest time of samplers and of classifier training.
        likelihood_eps: smallest time of the likelihood's ODE.
    """

    T = 1.0
    sampling_eps = 1e-3
    likelihood_eps = 1e-5

    def sde(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Drift f(x, t), shaped as `x`, and diffusion g(t) (B,)."""
        raise NotImplementedError

    def marginal_prob(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean, shaped as `x`, and standard deviation (B,) of p_t(x_t | x)."""
        raise NotImplementedError

    def scale_and_std(self, t: float) -> tuple[float, float]:
        """scale and std of x_t = scale·x + std·z at the time `t`, all three floats."""
        one = torch.ones(1, dtype=torch.float64)
        scale, std = self.marginal_prob(one, t * one)
        return scale.item(), std.item()

    def noise_level(self, t: float) -> float:
        """σ(t) = std/scale, floats: x_t/scale is the data with noise of this scale added."""
        scale, std = self.scale_and_std(t)
        return std / scale

    def time(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        """The time whose `noise_level` is `sigma`, floats or tensors; above T for σ above σ(T)."""
        raise NotImplementedError

    def prior_std(self) -> float:
        """Standard deviation of the prior, a centred Gaussian."""
        return 1.0

    def prior_logp(self, z: torch.Tensor) -> torch.Tensor:
        """Log density (B,) of latents `z` under the prior."""
        std = self.prior_std()
        dimensions = z[0].numel()
        return -dimensions / 2 * math.log(2 * math.pi * std**2) - z.flatten(1).square().sum(1) / (
            2 * std**2
        )

    def index(self, t: torch.Tensor) -> torch.Tensor:
        """Index of `t` on the grid of N points, int(t·(N−1)/T)."""
        return (t * (self.N - 1) / self.T).long()

    def discretize(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f and G of x_{i+1} = x_i + f(x_i) + G z; Euler-Maruyama with dt = 1/N."""
        drift, diffusion = self.sde(x, t)
        return drift / self.N, diffusion * math.sqrt(1 / self.N)

    def ancestral(
        self, x: torch.Tensor, t: torch.Tensor, score: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean, shaped as `x`, and standard deviation (B,) of ancestral sampling.

        Raises:
            UserError: the SDE has no such sampler.
        """
        raise UserError(
            f"The predictor ancestral_sampling is not defined for {type(self).__name__}; "
            "use reverse_diffusion or euler_maruyama."
        )

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """α (B,) of the Langevin correctors' step size."""
        return torch.ones_like(t)

    def conditioning(self, t: torch.Tensor, continuous: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's condition (B,) at `t`, and the factor (B,) from its output to the score."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class VESDE(SDE):
    """dx = σ(t) √(2 ln(σmax/σmin)) dw with σ(t) = σmin (σmax/σmin)^t."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    N: int = 1000
    sampling_eps = 1e-5

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def sde(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rate = math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))
        return torch.zeros_like(x), self.sigma(t) * rate

    def marginal_prob(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.sigma(t)

    def time(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        ratio = math.log(self.sigma_max / self.sigma_min)
        return math_or_torch("log", sigma / self.sigma_min) / ratio

    def prior_std(self) -> float:
        return self.sigma_max

    def _adjacent_sigmas(self, t):
        """σ_i and σ_{i−1} of the ascending geometric grid, with σ_{−1} = 0."""
        i = self.index(t)
        sigma = self.sigma(i / (self.N - 1))
        below = self.sigma((i - 1) / (self.N - 1))
        return sigma, torch.where(i == 0, torch.zeros_like(below), below)

    def discretize(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma, below = self._adjacent_sigmas(t)
        return torch.zeros_like(x), torch.sqrt(sigma**2 - below**2)

    def ancestral(
        self, x: torch.Tensor, t: torch.Tensor, score: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sigma, below = self._adjacent_sigmas(t)
        variance = sigma**2 - below**2
        return x + expand(variance, x) * score, torch.sqrt(below**2 * variance / sigma**2)

    def conditioning(self, t: torch.Tensor, continuous: bool) -> tuple[torch.Tensor, torch.Tensor]:
        cond = self.sigma(t) if continuous else torch.round((self.T - t) * (self.N - 1))
        return cond, torch.ones_like(t)


class VariancePreserving(SDE):
    """dx = −½β(t) x dt + √β(t) dw; a subclass defines β(t), its integral and the β_i."""

    def beta(self, t: torch.Tensor) -> torch.Tensor:
        """β(t) (B,)."""
        raise NotImplementedError

    def log_mean_coeff(self, t: torch.Tensor) -> torch.Tensor:
        """c(t) = −½∫β: the logarithm of the mean's coefficient."""
        raise NotImplementedError

    def discrete_beta(self, i: torch.Tensor) -> torch.Tensor:
        """β_i of the discrete chain of N steps."""
        raise NotImplementedError

    def sde(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        beta = self.beta(t)
        return -0.5 * expand(beta, x) * x, torch.sqrt(beta)

    def marginal_prob(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = self.log_mean_coeff(t)
        return expand(torch.exp(c), x) * x, torch.sqrt(-torch.expm1(2 * c))

    def decay(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        """−c(t) at the time at which std/scale, here √(exp(−2c) − 1), is `sigma`."""
        return 0.5 * math_or_torch("log1p", sigma**2)

    def discretize(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        beta = self.discrete_beta(self.index(t))
        return expand(torch.sqrt(1 - beta) - 1, x) * x, torch.sqrt(beta)

    def ancestral(
        self, x: torch.Tensor, t: torch.Tensor, score: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        beta = self.discrete_beta(self.index(t))
        mean = (x + expand(beta, x) * score) / expand(torch.sqrt(1 - beta), x)
        return mean, torch.sqrt(beta)

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return 1 - self.discrete_beta(self.index(t))

    def conditioning(self, t: torch.Tensor, continuous: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if continuous:
            _, std = self.marginal_prob(t, t)
            return t * 999, -1 / std
        label = t * (self.N - 1) / self.T
        return label, -1 / self._table(t, self._discrete_std)[label.long()]

    def _discrete_std(self):
        """√(1 − ᾱ_i) (N,) of the discrete chain, ᾱ_i the product of 1 − β_j up to i."""
        beta = self.discrete_beta(torch.arange(self.N, dtype=torch.float64))
        return torch.sqrt(1 - torch.cumprod(1 - beta, dim=0))

    @functools.cached_property
    def _tables(self):
        """Cached tables, by name, device and dtype."""
        return {}

    def _table(self, like, compute):
        """``compute()`` on the device and of the dtype of `like`, computed once for each."""
        key = compute.__name__, like.device, like.dtype
        if key in self._tables:
            return self._tables[key]
        table = compute().to(like.device, like.dtype)
        if type(table) is torch.Tensor:  # and not a fake one, which holds no numbers
            self._tables[key] = table
        return table


@dataclasses.dataclass(frozen=True)
class VPSDE(VariancePreserving):
    """The VP SDE with β(t) = β0 + t (β1 − β0)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    N: int = 1000

    def beta(self, t: torch.Tensor) -> torch.Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_mean_coeff(self, t: torch.Tensor) -> torch.Tensor:
        """c(t) = −¼t²(β1 − β0) − ½tβ0: the logarithm of the mean's coefficient."""
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def time(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        # The positive root of ¼t²(β1 − β0) + ½tβ0 = decay, in the form that loses no digits.
        decay, half = self.decay(sigma), 0.5 * self.beta_min
        root = math_or_torch("sqrt", half**2 + (self.beta_max - self.beta_min) * decay)
        return 2 * decay / (half + root)

    def discrete_beta(self, i: torch.Tensor) -> torch.Tensor:
        """β_i of linspace(β0/N, β1/N, N)."""
        return self.beta(i / (self.N - 1)) / self.N


@dataclasses.dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """The VP SDE's drift with g = √(β(t) (1 − exp(−2β0 t − (β1 − β0) t²)))."""

    def sde(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        drift, diffusion = super().sde(x, t)
        return drift, diffusion * torch.sqrt(-torch.expm1(4 * self.log_mean_coeff(t)))

    def marginal_prob(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = self.log_mean_coeff(t)
        return expand(torch.exp(c), x) * x, -torch.expm1(2 * c)

    def decay(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        return math_or_torch("asinh", sigma / 2)  # std/scale is exp(−c) − exp(c) = 2 sinh(−c)

    discretize = SDE.discretize
    ancestral = SDE.ancestral

    def conditioning(self, t: torch.Tensor, continuous: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if not continuous:
            raise UserError(
                "The sub-VP SDE has no discrete training; use --config.training.continuous=True."
            )
        return super().conditioning(t, continuous)


def _scaled_linear_betas(first, last, count):
    return np.linspace(first**0.5, last**0.5, count) ** 2


def _cosine_betas(first, last, count):
    """Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), eq. 17."""
    levels = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - levels[1:] / levels[:-1], 0.999)


BETA_SCHEDULES = {
    "linear": np.linspace,
    "scaled_linear": _scaled_linear_betas,
    "squaredcos_cap_v2": _cosine_betas,
}
"""``config.model.beta_schedule`` -> β (N,) of the first one, the last one and N."""


@dataclasses.dataclass(frozen=True)
class DDPM(VariancePreserving):
    """The VP SDE through the steps of a DDPM (Ho et al., NeurIPS 2020), a chain β_0 … β_{n−1}.

    At t = i/(n − 1) the mean's coefficient is √ᾱ_i, ᾱ_i the product of 1 − β_j up to i. Between
    these times log ᾱ is a monotone cubic (PCHIP). The smallest time is 0, where ᾱ is ᾱ_0.

    Args:
        beta_min, beta_max: n times the first and the last β, which the cosine schedule ignores.
        N: steps of the discretisation, whose β_i are those between N equidistant times.
        schedule: name in `BETA_SCHEDULES`.
        length: n, the steps that the network was trained with.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    N: int = 1000
    schedule: str = "linear"
    length: int = 1000

    sampling_eps = 0.0
    likelihood_eps = 0.0

    @functools.cached_property
    def _log_mean(self):
        """c(t), a piecewise cubic through ½ log ᾱ_i."""
        n = self.length
        betas = BETA_SCHEDULES[self.schedule](self.beta_min / n, self.beta_max / n, n)
        return PchipInterpolator(np.arange(n) / (n - 1), np.log1p(-betas).cumsum() / 2)

    def _cubic(self, t):
        """The coefficients (4, …) of c about the start of each t's piece, and t from there."""
        table = self._table(t, self._coefficients)
        pieces = self.length - 1
        piece = (t * pieces).long().clamp(0, pieces - 1)
        return table[:, piece], t - piece.to(t.dtype) / pieces

    def _coefficients(self):
        return torch.from_numpy(self._log_mean.c)

    def _knots(self):
        return torch.from_numpy(self._log_mean(self._log_mean.x))

    def log_mean_coeff(self, t: torch.Tensor) -> torch.Tensor:
        (a, b, c, d), u = self._cubic(t)
        return ((a * u + b) * u + c) * u + d

    def beta(self, t: torch.Tensor) -> torch.Tensor:
        (a, b, c, _), u = self._cubic(t)
        return -2 * ((3 * a * u + 2 * b) * u + c)

    def time(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        """As `SDE.time`, clamped to [0, T], the steps that the network was trained with."""
        if not isinstance(sigma, torch.Tensor):
            return self.time(torch.tensor(sigma, dtype=torch.float64)).item()
        knots = self._table(sigma.double(), self._knots)
        c = (-self.decay(sigma.double())).clamp(knots[-1], knots[0])
        piece = (torch.searchsorted(-knots, -c) - 1).clamp(0, self.length - 2)
        t = (piece + (c - knots[piece]) / (knots[piece + 1] - knots[piece])) / (self.length - 1)
        for _ in range(4):  # Newton's method, from the line through the piece's ends
            t = (t + 2 * (self.log_mean_coeff(t) - c) / self.beta(t)).clamp(0, 1)
        return t.to(sigma.dtype)

    def index(self, t: torch.Tensor) -> torch.Tensor:
        """Index of the nearest point of the grid of N points to `t`."""
        return (t * (self.N - 1)).round().long()

    def discrete_beta(self, i: torch.Tensor) -> torch.Tensor:
        """β_i = 1 − ᾱ(t_i)/ᾱ(t_{i−1}) on N equidistant times; ᾱ is 1 before the first."""
        i, steps = i.double(), self.N - 1  # in float32 the difference would lose digits
        c, before = self.log_mean_coeff(i / steps), self.log_mean_coeff((i - 1) / steps)
        return -torch.expm1(2 * (c - torch.where(i == 0, torch.zeros_like(c), before))).float()

    def conditioning(self, t: torch.Tensor, continuous: bool) -> tuple[torch.Tensor, torch.Tensor]:
        _, std = self.marginal_prob(t, t)
        return t * (self.length - 1), -1 / std


@dataclasses.dataclass(frozen=True)
class CosineVPSDE(VariancePreserving):
    """The VP SDE of the cosine schedule, with mean coefficient √ᾱ(t) = cos θ(t)/cos θ(0).

    θ(t) = ½π(t + s)/(1 + s) with s = 0.008 (Nichol and Dhariwal, ICML 2021, eq. 17), so that
    β(t) = π/(1 + s)·tan θ(t). It diverges at t = 1. T is therefore 0.9946, where the noise
    level is 119 (Lu et al., "DPM-Solver", NeurIPS 2022).
    """

    N: int = 1000

    T = 0.9946
    offset = 0.008

    def angle(self, t: torch.Tensor | float) -> torch.Tensor | float:
        """θ(t)."""
        return 0.5 * math.pi * (t + self.offset) / (1 + self.offset)

    def beta(self, t: torch.Tensor) -> torch.Tensor:
        return math.pi / (1 + self.offset) * torch.tan(self.angle(t))

    def log_mean_coeff(self, t: torch.Tensor) -> torch.Tensor:
        # The difference of the cosines as a product, which loses no digits at small times.
        first, half = self.angle(0.0), 0.25 * math.pi * t / (1 + self.offset)
        difference = 2 * torch.sin(first + half) * torch.sin(half)
        return torch.log1p(-difference / math.cos(first))

    def time(self, sigma: float | torch.Tensor) -> float | torch.Tensor:
        cosine = math.cos(self.angle(0.0)) / math_or_torch("sqrt", 1 + sigma**2)
        return math_or_torch("acos", cosine) * 2 * (1 + self.offset) / math.pi - self.offset

    def discrete_beta(self, i: torch.Tensor) -> torch.Tensor:
        """β_i = min(1 − ᾱ((i + 1)/N)/ᾱ(i/N), 0.999)."""
        before, after = (torch.cos(self.angle((i.double() + k) / self.N)) for k in (0, 1))
        beta = (1 - (after / before) ** 2).clamp(max=0.999)
        return beta.to(i.dtype if i.is_floating_point() else torch.float32)


@dataclasses.dataclass(frozen=True)
class ReverseSDE:
    """The time reversal of `sde` under `score(x, t)`, or its probability-flow ODE.

    dx = [f − g² s] dt + g dw (Song et al. 2021, eq. 6); the probability flow has ½g² s and no
    noise (eq. 13).
    """

    forward: SDE
    score: ScoreFunction
    probability_flow: bool = False

    def _reverse(self, x, t, drift, diffusion):
        half = 0.5 if self.probability_flow else 1.0
        drift = drift - half * expand(diffusion**2, x) * self.score(x, t)
        return drift, torch.zeros_like(diffusion) if self.probability_flow else diffusion

    def sde(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Drift, shaped as `x`, and diffusion (B,) of the reverse-time SDE."""
        return self._reverse(x, t, *self.forward.sde(x, t))

    def discretize(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f and G of x_{i−1} = x_i − f + G z."""
        return self._reverse(x, t, *self.forward.discretize(x, t))


def _ddpm(model, N):
    schedule = take(model, ["beta_schedule"])["beta_schedule"]
    lookup(BETA_SCHEDULES, schedule, "config.model.beta_schedule")
    return DDPM(model.beta_min, model.beta_max, N, schedule, length=N)


SDES = {
    "vesde": lambda model, N: VESDE(model.sigma_min, model.sigma_max, N),
    "vpsde": lambda model, N: VPSDE(model.beta_min, model.beta_max, N),
    "subvpsde": lambda model, N: SubVPSDE(model.beta_min, model.beta_max, N),
    "cosine_vpsde": lambda model, N: CosineVPSDE(N),
    "ddpm": _ddpm,
}
"""``config.training.sde`` -> a function of (config.model, N) that builds the SDE."""


def from_config(config: ml_collections.ConfigDict) -> SDE:
    """The SDE that ``config.training.sde`` names, with ``config.model.num_scales`` steps.

    Raises:
        UserError: the name is unknown, or ddpm lacks a known ``config.model.beta_schedule``.
    """
    build = lookup(SDES, str(config.training.sde).lower(), "config.training.sde")
    return build(config.model, config.model.num_scales)
