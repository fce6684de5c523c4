"""Solvers of the probability-flow ODE dx/dσ = (x − D(x, σ))/σ (Karras et al. 2022, eq. 1).

A sampler is a function `(denoiser, x, sigmas, randn_like, callback)` → x: from x (B, ...) with
noise of scale sigmas[0] to x at the last of the descending floats `sigmas`. If that is 0, the last
step is D. `callback()` is called after each step; only stochastic samplers call `randn_like`. x
keeps its dtype, preferably float64.

In x = x_t/scale and σ = std/scale the formulas that the papers give for x_t have scale 1 and
log-SNR λ = −log σ, whatever the SDE.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

Denoising = Callable[[torch.Tensor, float], torch.Tensor]
NoiseLike = Callable[[torch.Tensor], torch.Tensor]


def no_callback(*_: object) -> None:
    """The default callback, which does nothing."""


def slope(x: torch.Tensor, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
    """dx/dσ (B, ...) of the probability flow, which is also the noise in x, in units of σ."""
    return (x - denoised) / sigma


@torch.no_grad()
def euler(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
) -> torch.Tensor:
    """Euler's method in σ, the same as DDIM (Song et al., ICLR 2021, eq. 12 with η = 0)."""
    for sigma, following in itertools.pairwise(sigmas):
        x = x + (following - sigma) * slope(x, denoiser(x, sigma), sigma)
        callback()
    return x


@torch.no_grad()
def heun(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
) -> torch.Tensor:
    """Heun's method in σ (Karras et al. 2022, algorithm 1); a step to 0 is Euler's."""
    for sigma, following in itertools.pairwise(sigmas):
        x = heun_step(denoiser, x, sigma, following)
        callback()
    return x


def heun_step(denoiser: Denoising, x: torch.Tensor, sigma: float, following: float) -> torch.Tensor:
    """x at `following` from x at `sigma`: lines 4 to 9 of algorithm 1 of Karras et al."""
    d = slope(x, denoiser(x, sigma), sigma)
    euler_x = x + (following - sigma) * d
    if following == 0:
        return euler_x
    following_d = slope(euler_x, denoiser(euler_x, following), following)
    return x + (following - sigma) * (d + following_d) / 2


@torch.no_grad()
def deis(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
) -> torch.Tensor:
    """DEIS of order 4, ρAB (Zhang and Chen, ICLR 2023): Adams-Bashforth in σ.

    A polynomial through the last four slopes is integrated. With equal steps its weights are
    iPNDM's, (55, −59, 37, −9)/24. The first three steps have lower orders, the first is Euler's.
    Where these dominate, the error falls with the square of the number of steps.
    """
    points = []
    for sigma, following in itertools.pairwise(sigmas):
        kept = 3 if following > 0 else 0
        points = [(sigma, slope(x, denoiser(x, sigma), sigma)), *points[:kept]]
        nodes = [(other - sigma) / (following - sigma) for other, _ in points]
        weights = quadrature(nodes, [1 / (k + 1) for k in range(len(nodes))])
        x = x + (following - sigma) * sum(w * d for w, (_, d) in zip(weights, points))
        callback()
    return x


@torch.no_grad()
def dpmpp_2m(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""
    previous = None
    for sigma, following in itertools.pairwise(sigmas):
        D = denoiser(x, sigma)
        target = extrapolated(D, previous, sigma, following)
        x = (following / sigma) * x + (1 - following / sigma) * target
        previous = sigma, D
        callback()
    return x


def extrapolated(
    D: torch.Tensor, previous: tuple[float, torch.Tensor] | None, sigma: float, following: float
) -> torch.Tensor:
    """D + (D − D₋₁)/(2r), r = h₋₁/h, of algorithm 2 of Lu et al.; at a first or last step D.

    `previous` is (σ₋₁, D₋₁) or None.
    """
    if previous is None or following == 0:
        return D
    earlier, earlier_D = previous
    r = math.log(earlier / sigma) / math.log(sigma / following)
    return D + (D - earlier_D) / (2 * r)


@torch.no_grad()
def dpmpp_3m(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
) -> torch.Tensor:
    """DPM-Solver++(3M) (Lu et al. 2022, arXiv 2211.01095): proposition 4.1, expanded to k = 3.

    The derivatives of D are those of the parabola in λ through its last three values. Its D'' is
    twice the second divided difference; with half of that the order is 2. The first step is
    Euler's and the second 2M's, as in `deis`.
    """
    points = []
    for sigma, following in itertools.pairwise(sigmas):
        points = [(sigma, denoiser(x, sigma)), *points[:2]]
        x = data_prediction_step(x, following, points)
        callback()
    return x


@torch.no_grad()
def unipc(
    denoiser: Denoising,
    x: torch.Tensor,
    sigmas: Sequence[float],
    randn_like: NoiseLike = torch.randn_like,
    callback: Callable[[], object] = no_callback,
) -> torch.Tensor:
    """UniPC-3 (Zhao et al., NeurIPS 2023, algorithms 1 and 2), multistep, B(h) = 1 − e^{−h}.

    UniC corrects x to order 4 with the value of D that UniP's next step needs anyway. The last step
    has no such value and is not corrected.
    """
    points, before = [], x
    for sigma, following in itertools.pairwise(sigmas):
        point = sigma, denoiser(x, sigma)
        if points:
            x = data_prediction_step(before, sigma, [*points, point])
        points = [point, *points[:2]]
        before, x = x, data_prediction_step(x, following, points)
        callback()
    return x


def data_prediction_step(
    x: torch.Tensor, following: float, points: Sequence[tuple[float, torch.Tensor]]
) -> torch.Tensor:
    """x at `following` from x at σ₀ and `points` (σ_m, D_m), the first of them at σ₀.

    e^{−h}·x + (1 − e^{−h})·(D₀ + Σ a_m (D_m − D₀)/r_m) with r_m = (λ_m − λ₀)/h, where the a_m make
    it exact for polynomials D in λ (Zhao et al. 2023, section 3; UniC if a point is at `following`,
    else UniP). With a single other point a is ½, as in the paper: the order is the same, and UniP
    is DPM-Solver++(2M).
    """
    (sigma, D), *others = points
    if following == 0:
        return D
    h = math.log(sigma / following)
    r = [math.log(sigma / other) / h for other, _ in others]
    a = [0.5] if len(r) == 1 else quadrature(r, exponential_moments(h, len(r)))
    target = D + sum(a_m * (D_m - D) / r_m for a_m, r_m, (_, D_m) in zip(a, r, others))
    return (following / sigma) * x + (1 - following / sigma) * target


def exponential_moments(h: float, count: int) -> list[float]:
    """Means of τ, τ², … over τ in (0, 1) weighted by e^{hτ}, `count` floats."""
    moments = [1.0]
    for k in range(1, count + 1):
        moments.append(-1 / math.expm1(-h) - k / h * moments[-1])  # by parts
    return moments[1:]


def quadrature(nodes: list[float], moments: list[float]) -> list[float]:
    """Weights w with Σ w_j nodes_j^k = moments_k for all k below their number; floats."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist()
