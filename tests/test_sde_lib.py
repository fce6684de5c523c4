"""SDEs: parity of every quantity, reverse and probability flow, and the closed forms."""

import math
import re

import golden
import pytest
import torch
from device_option import DEVICE

import sde_lib
from configs.demo import digits
from utils import UserError

GOLDEN = golden.arrays("sde")
PREFIXES = sorted(key.removesuffix("_mean") for key in GOLDEN if key.endswith("_mean"))
ALL = [sde_lib.VESDE(), sde_lib.VPSDE(), sde_lib.SubVPSDE(), sde_lib.CosineVPSDE()]


def build(prefix):
    if steps := re.fullmatch(r"ve_n(\d+)", prefix):
        # ln σ is linear in t; its end points follow from two of the times, one of which is 1.
        t, log_std = GOLDEN["t"].double(), GOLDEN[f"{prefix}_std"].double().log()
        last, first = int(t.argmax()), int(t.argmin())
        log_min = (log_std[first] - t[first] * log_std[last]) / (1 - t[first])
        sigmas = float(log_min.exp()), float(log_std[last].exp())
        return sde_lib.VESDE(*sigmas, N=int(steps[1]))
    return {"ve": ALL[0], "vp": ALL[1], "subvp": ALL[2]}[prefix]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_quantities_are_the_published_ones(prefix):
    sde = build(prefix)
    x, t = GOLDEN["x"], GOLDEN["t"]

    def score(x, t):
        return -x / sde_lib.expand(1 + t, x)

    ours = {"prior_logp": sde.prior_logp(x)}
    ours["mean"], ours["std"] = sde.marginal_prob(x, t)
    ours["drift"], ours["diffusion"] = sde.sde(x, t)
    ours["f"], ours["G"] = sde.discretize(x, t)
    reverse = sde_lib.ReverseSDE(sde, score)
    ours["rev_drift"], _ = reverse.sde(x, t)
    ours["rev_f"], ours["rev_G"] = reverse.discretize(x, t)
    flow = sde_lib.ReverseSDE(sde, score, probability_flow=True)
    ours["ode_drift"], diffusion = flow.sde(x, t)
    ours["ode_f"], G = flow.discretize(x, t)
    for name, value in ours.items():
        theirs = GOLDEN[f"{prefix}_{name}"]
        scale = theirs.abs().max().clamp(min=1e-12)
        assert (value - theirs).abs().max() / scale < 1e-4, name
    assert diffusion.abs().max() == 0
    assert G.abs().max() == 0


@pytest.mark.parametrize("sde", ALL, ids=lambda sde: type(sde).__name__)
def test_marginals_solve_the_moment_equations(sde):
    """d mean/dt = a·mean and d var/dt = 2a·var + g², for the linear drift a(t)·x."""
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, device=DEVICE)
    one, h = torch.ones(7, 1, dtype=torch.float64, device=DEVICE), 1e-6
    drift, g = sde.sde(one, t)
    (m0, s0), (m1, s1) = sde.marginal_prob(one, t - h), sde.marginal_prob(one, t + h)
    mean, std = sde.marginal_prob(one, t)
    torch.testing.assert_close((m1 - m0) / (2 * h), drift * mean, rtol=1e-5, atol=1e-8)
    slope = (s1**2 - s0**2) / (2 * h)
    torch.testing.assert_close(slope, 2 * drift[:, 0] * std**2 + g**2, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sde", ALL[1:], ids=lambda sde: type(sde).__name__)
def test_small_times_lose_no_digits(sde):
    """1 − exp(2c) cancels in float32 where c is small."""
    t = torch.tensor([1e-5, 1e-4, 1e-3, 0.5], dtype=torch.float64, device=DEVICE)
    x = torch.ones(4, 1, dtype=torch.float64, device=DEVICE)
    for exact, single in zip(
        (*sde.marginal_prob(x, t), *sde.sde(x, t)),
        (*sde.marginal_prob(x.float(), t.float()), *sde.sde(x.float(), t.float())),
        strict=True,
    ):
        torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sde", ALL, ids=lambda sde: type(sde).__name__)
def test_times_and_noise_levels_are_inverse(sde):
    """Of floats, and of tensors alike."""
    times = [1e-3, 0.1, 0.5, 0.9, sde.T]
    sigmas = [sde.noise_level(t) for t in times]
    assert [sde.time(sigma) for sigma in sigmas] == pytest.approx(times, rel=1e-9)
    tensor = torch.tensor(sigmas, dtype=torch.float64, device=DEVICE)
    assert sde.time(tensor).tolist() == pytest.approx(times, rel=1e-9)


def test_the_table_of_the_discrete_chain_is_computed_once(monkeypatch):
    cumprod, calls = torch.cumprod, []
    monkeypatch.setattr(torch, "cumprod", lambda *a, **k: calls.append(1) or cumprod(*a, **k))
    sde, t = sde_lib.VPSDE(), torch.tensor([0.3])
    first, second = (sde.conditioning(t, continuous=False)[1] for _ in range(2))
    assert torch.equal(first, second)
    assert calls == [1]


def test_the_cosine_schedule_is_the_papers():
    """ᾱ(t) = f(t)/f(0) with f = cos²; β_i = min(1 − ᾱ_i/ᾱ_{i−1}, 0.999), also diffusers' chain."""
    sde, one = sde_lib.CosineVPSDE(N=50), torch.ones(1, dtype=torch.float64)

    def f(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1e-3, 0.3, 0.99):
        assert sde.scale_and_std(t)[0] ** 2 == pytest.approx(f(t) / f(0), rel=1e-12)
    betas = [min(1 - f((i + 1) / 50) / f(i / 50), 0.999) for i in range(50)]
    ours = sde.discrete_beta(torch.arange(50, dtype=torch.float64))
    assert ours.tolist() == pytest.approx(betas, rel=1e-9)
    assert sde.discrete_beta(torch.arange(50)).dtype == torch.float32
    f_end, G = sde.discretize(one.float(), sde.T * one.float())
    assert G.item() ** 2 == pytest.approx(0.999)
    assert f_end.item() == pytest.approx(0.001**0.5 - 1, rel=1e-5)
    label, scale = sde.conditioning(sde.T * one, continuous=False)
    assert label.item() == 49
    assert scale.item() == pytest.approx(-1)


@pytest.mark.parametrize("schedule", sde_lib.BETA_SCHEDULES)
def test_times_of_a_ddpm(schedule):
    """The inverse of the noise level, and the ends of [0, 1] outside of its range."""
    sde = sde_lib.DDPM(schedule=schedule)
    times = torch.tensor([1e-4, 0.0017, 0.02, 0.31, 0.77, 0.999], dtype=torch.float64)
    sigmas = torch.tensor([sde.noise_level(t.item()) for t in times], dtype=torch.float64)
    torch.testing.assert_close(sde.time(sigmas), times, rtol=1e-12, atol=0)
    assert sde.time(sigmas[3].item()) == pytest.approx(0.31, rel=1e-12)
    outside = torch.tensor([sde.noise_level(0.0) / 2, sde.noise_level(1.0) * 2])
    assert sde.time(outside).tolist() == [0, 1]


def test_the_sde_of_diffusers_models_needs_their_schedule():
    config = digits.get_config()
    config.training.sde = "ddpm"
    with pytest.raises(UserError, match=r"model\.beta_schedule"):
        sde_lib.from_config(config)
