"""Fast samplers: order of convergence, distributions, costs, and what a seed per image promises."""

import functools
import math

import mixture
import numpy as np
import pytest
import scipy.integrate
import torch
from device_option import DEVICE
from mixture import each_problem, each_sde

from samplers import grids
from samplers.fast import SAMPLERS, FastSampler
from samplers.noise import PerImageNoise
from samplers.stochastic import churn, dpmpp_2m_sde
from sde_lib import VESDE

ORDERS = {"euler": 1, "heun": 2, "deis": 4, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 4}
NFE = {"heun": 35, "churn": 35}  # of 18 steps (Karras et al.); else 18

# ---------------------------------------------------------------- convergence

FIRST, LAST = 50.0, 0.02


def exact_flow(denoiser, x):
    """x at LAST from x at FIRST along the probability flow, by SciPy in log σ."""

    def field(log_sigma, y):
        y = torch.from_numpy(y).reshape(x.shape).to(DEVICE)
        return (y - denoiser(y, math.exp(log_sigma))).flatten().cpu().numpy()

    span, start = (math.log(FIRST), math.log(LAST)), x.flatten().cpu().numpy()
    solution = scipy.integrate.solve_ivp(field, span, start, "DOP853", rtol=1e-9, atol=1e-9)
    return torch.from_numpy(solution.y[:, -1]).reshape(x.shape).to(DEVICE)


@functools.cache
def solved(problem, sde):
    """A mixture's denoiser, a start, and the exact end of its flow."""
    data = problem(sde).wider(3.0)  # whose flow turns so slowly that a few steps show the order
    start = FIRST * data.noise(6)
    return data.denoiser(), start, exact_flow(data.denoiser(), start)


@each_sde
@each_problem
@pytest.mark.parametrize("name", ORDERS)
def test_solvers_converge_at_their_order(name, problem, sde):
    denoiser, start, end = solved(problem, sde)
    steps = np.array([20, 40, 80] if ORDERS[name] < 3 else [60, 120, 240])
    errors = []
    for count in steps.tolist():
        sigmas = grids.karras(LAST, FIRST, count + 1)[:-1]
        errors.append(float((SAMPLERS[name](denoiser, start, sigmas) - end).norm()))
    slope, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    assert -slope == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize("name", ORDERS)
def test_solvers_find_the_flow_of_a_gaussian(name):
    """(x − mean) along each axis of C goes as √(variance + σ²), and then D is taken."""
    data = mixture.points(VESDE()).first()
    mean, (variances, axes) = data.means[0], data.principal
    start = mean + FIRST * data.noise(5)
    sigmas = grids.karras(LAST, FIRST, 200)
    ratio = torch.sqrt((variances + LAST**2) / (variances + FIRST**2))
    shrunk = ratio * variances / (variances + LAST**2)
    exact = mean + (start - mean) @ axes * shrunk @ axes.T
    error = (SAMPLERS[name](data.denoiser(), start, sigmas) - exact).norm()
    assert error < {1: 3e-2, 2: 3e-4}.get(ORDERS[name], 1e-5) * exact.norm()


# ---------------------------------------------------------------- distributions

STOCHASTIC = {
    "churn": functools.partial(churn, s_churn=20.0, s_tmin=0.02, s_tmax=10.0, s_noise=1.0),
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_eta2": functools.partial(dpmpp_2m_sde, eta=2.0),
}


def drawn(name, data, count, steps, seed):
    """Samples (count, n) of a mixture."""
    generator = torch.Generator().manual_seed(seed)

    def randn_like(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(DEVICE)

    sigmas = grids.karras(0.01, 20.0, steps)
    x = sigmas[0] * data.noise(count, seed + 1)
    return STOCHASTIC[name](data.denoiser(), x, sigmas, randn_like)


def surprise(errors):
    """Σ errors², of standard normal errors, less its mean and over its standard deviation."""
    return (errors.square().sum() - errors.numel()) / math.sqrt(2 * errors.numel())


@each_sde
@each_problem
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_the_gaussian(name, problem, sde):
    """All elements of the whitened mean, and of the covariance, in their standard errors."""
    count, data = 1000, problem(sde).first()
    root = torch.linalg.cholesky(data.covariance)
    off = (drawn(name, data, count, steps=120, seed=2) - data.means).flatten(1)
    white = torch.linalg.solve_triangular(root, off.T, upper=False)
    assert surprise(white.mean(1) * math.sqrt(count)) < 3
    identity = torch.eye(len(white), dtype=torch.float64, device=DEVICE)
    errors = (torch.cov(white) - identity) / torch.sqrt((1 + identity) / count)
    assert surprise(errors[torch.triu(torch.ones_like(errors)) > 0]) < 3


@each_sde
@each_problem
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_components_by_their_weights(name, problem, sde):
    count, data = 1000, problem(sde)
    component = data.nearest(drawn(name, data, count, steps=40, seed=5))
    share = torch.bincount(component, minlength=len(data.weights)) / count
    error = torch.sqrt(data.weights * (1 - data.weights) / count)
    assert ((share - data.weights).abs() < 3 * error).all()


# ---------------------------------------------------------------- costs


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_and_callbacks_are_counted(name):
    data = mixture.points(VESDE())
    sampler = FastSampler(SAMPLERS[name], VESDE(), grids.karras(LAST, FIRST, 18))
    asked, calls = [], []

    def score(x, t):
        asked.append(t)
        return data.score(x.double(), t).float()

    _, nfe = sampler(score, data.noise(3).float(), callback=lambda: calls.append(1))
    assert nfe == len(asked) == NFE.get(name, 18)
    assert len(calls) == sampler.steps


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_denoises(name):
    """A denoiser that knows the answer gives it, from any x."""
    x = FIRST * torch.randn(3, 2, 4, 4, device=DEVICE)
    samples = SAMPLERS[name](lambda x, s: torch.full_like(x, 0.25), x, grids.karras(LAST, FIRST, 9))
    torch.testing.assert_close(samples, torch.full_like(x, 0.25))


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_waits_for_the_device(name):
    """Meta tensors hold no values, so reading one on the host would fail."""
    sampler = FastSampler(SAMPLERS[name], mixture.SDES[1], grids.of_sde(mixture.SDES[1], 9))
    samples, _ = sampler(lambda x, t: -x, torch.empty(3, 2, 4, 4, device="meta"))
    assert samples.shape == (3, 2, 4, 4)


# ---------------------------------------------------------------- a seed per image


def draw_in_batches(name, score, shape, batch_size, total=50):
    """`total` samples of FastSampler, so many at a time, with PerImageNoise."""
    sampler = FastSampler(SAMPLERS[name], VESDE(), grids.karras(LAST, FIRST, 9))
    batches = []
    for first in range(0, total, batch_size):
        images = range(first, min(first + batch_size, total))
        noise = PerImageNoise(DEVICE, images, "test", 7)
        latents = noise.randn((len(images), *shape))
        batches.append(sampler(score, latents, noise.randn_like)[0])
    return torch.cat(batches)


@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_size_changes_no_sample(name):
    """Byte for byte, where the score treats images one by one."""

    def score(x, t):
        return -x / (1 + t[0])

    alone, sevens, once = (draw_in_batches(name, score, (1, 4, 4), bs) for bs in (1, 7, 50))
    assert torch.equal(alone, sevens)
    assert torch.equal(alone, once)
    assert len(alone.unique(dim=0)) == 50
