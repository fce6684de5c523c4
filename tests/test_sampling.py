"""Samplers: parity with the published ones, exact Gaussians, and their own noise."""

import golden
import numpy as np
import pytest
import torch
from device_option import DEVICE
from gaussian import GaussianData

import sampling
import sde_lib
from models.scores import Score
from utils import UserError


class GoldenNoise:
    """Draw j is RandomState(first + j).randn(*shape)."""

    def __init__(self, first):
        self.next = first

    def randn_like(self, x):
        noise = np.random.RandomState(self.next).randn(*x.shape).astype(np.float32)
        self.next += 1
        return torch.from_numpy(noise).to(DEVICE)


def pc_sampler(sde, predictor, corrector, **options):
    return sampling.PCSampler(
        sde, sampling.PREDICTORS[predictor], sampling.CORRECTORS[corrector], **options
    )


def check_pc_samples(entry, data, sde, score):
    """A score's samples are the published ones, from the same noise."""
    assert sde.sampling_eps == entry["eps"]
    sampler = pc_sampler(
        sde,
        entry["predictor"],
        entry["corrector"],
        snr=entry["snr"],
        n_steps=entry["n_steps"],
        probability_flow=entry["probability_flow"],
    )
    noise = GoldenNoise(entry["noise_seed_first"])
    latents = noise.randn_like(torch.empty(entry["shape"], device=DEVICE))
    samples, nfe = sampler(score, latents, noise.randn_like)
    if entry.get("centered"):
        samples = (samples + 1) / 2
    assert noise.next - entry["noise_seed_first"] == entry["noise_draws"]
    assert nfe == golden.evaluations(entry, data["nfe"])
    assert (samples - data["samples"]).abs().max() < 1e-3 * data["samples"].std()


@pytest.mark.parametrize("name", golden.names("pc_"))
def test_pc_samples_are_the_published_ones(name):
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    sde = golden.sde(entry["sde"], entry["N"])
    check_pc_samples(entry, data, sde, Score(golden.network(entry["model"]), sde))


def test_ode_samples_are_the_published_ones():
    (name,) = golden.names("ode_sampler")
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    sde = golden.sde(entry["sde"])
    sampler = sampling.ODESampler(sde, entry["rtol"], entry["atol"], entry["denoise"])
    score = Score(golden.network(entry["model"]), sde)
    samples, nfe = sampler(score, data["z"] / sde.prior_std())
    assert (samples - data["samples"]).abs().max() < 1e-2 * data["samples"].std()
    assert nfe == pytest.approx(int(data["nfe"]), rel=0.02, abs=6)


def check_moments(samples, mean, std):
    """Mean and standard deviation within three standard errors."""
    count = samples.numel()
    assert abs(float(samples.mean()) - mean) < 3 * std / count**0.5
    assert abs(float(samples.std()) - std) < 3 * std / (2 * count) ** 0.5


SDES = [sde_lib.VESDE(), sde_lib.VPSDE(), sde_lib.SubVPSDE(), sde_lib.CosineVPSDE()]


@pytest.mark.parametrize("corrector", sorted(sampling.CORRECTORS))
@pytest.mark.parametrize("predictor", sorted(set(sampling.PREDICTORS) - {"none"}))
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_pc_draws_the_gaussian_whose_score_it_is_given(sde, predictor, corrector):
    if isinstance(sde, sde_lib.SubVPSDE) and predictor == "ancestral_sampling":
        pytest.skip("not defined for the sub-VP SDE")
    torch.manual_seed(0)
    data = GaussianData(mean=0.5, std=0.8, sde=sde)
    sampler = pc_sampler(sde, predictor, corrector, snr=0.05)
    samples, _ = sampler(data.score, torch.randn(512, 1, 2, 4, device=DEVICE))
    check_moments(samples, 0.5, 0.8)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_ode_draws_the_gaussian_whose_score_it_is_given(sde):
    torch.manual_seed(0)
    data = GaussianData(mean=0.5, std=0.8, sde=sde)
    samples, nfe = sampling.ODESampler(sde, 1e-5, 1e-5)(
        data.score, torch.randn(512, 1, 2, 4, device=DEVICE)
    )
    check_moments(samples, 0.5, 0.8)
    assert nfe > 6


class Spy:
    """A score that was called `calls` times."""

    def __init__(self, score):
        self.score = score
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return self.score(x, t)


@pytest.mark.parametrize("corrector", sorted(sampling.CORRECTORS))
@pytest.mark.parametrize("predictor", sorted(sampling.PREDICTORS))
def test_pc_counts_what_it_evaluates(predictor, corrector):
    """N·(n_steps + 1), but nothing for what is `none`."""
    sde = sde_lib.VESDE(N=5)
    spy = Spy(GaussianData(mean=0.5, std=0.8, sde=sde).score)
    sampler = pc_sampler(sde, predictor, corrector, snr=0.1, n_steps=3)
    calls = []
    x = torch.randn(2, 1, 2, 2, device=DEVICE)
    _, nfe = sampler(spy, x, callback=lambda: calls.append(1))
    assert nfe == spy.calls == 5 * ((predictor != "none") + 3 * (corrector != "none"))
    assert len(calls) == sampler.steps == 5


def test_ode_counts_what_it_evaluates():
    """The denoising step too."""
    sde = sde_lib.VESDE()
    counts = []
    for noise_removal in (False, True):
        spy = Spy(GaussianData(mean=0.5, std=0.8, sde=sde).score)
        sampler = sampling.ODESampler(sde, 1e-3, 1e-3, noise_removal)
        _, nfe = sampler(spy, torch.ones(2, 1, 2, 2, device=DEVICE))
        assert nfe == spy.calls
        counts.append(nfe)
    assert counts[1] == counts[0] + 1


def overflowing(x, t):
    return torch.where(t[:, None] > 0.5, -x, torch.inf)


def exploding(x, t):
    """Reaches infinity in finite time, by steps without end."""
    return x**3


def stiff(x, t):
    return -1e5 * x


@pytest.mark.parametrize(
    ("score", "named", "most"),
    [
        (overflowing, "checkpoint", 100),
        (exploding, "sampling.rtol", 2000),
        (stiff, "sampling.max_nfe", 300),
    ],
)
def test_a_flow_that_cannot_be_solved_gets_a_sentence(score, named, most):
    spy = Spy(score)
    sampler = sampling.ODESampler(sde_lib.VPSDE(), 1e-3, 1e-3, max_nfe=most)
    with pytest.raises(UserError, match=named):
        sampler(spy, torch.ones(2, 3, device=DEVICE))
    assert spy.calls <= most
    assert score is not stiff or spy.calls == most


def test_the_last_step():
    """The mean, or x with noise of scale 2·last_step_snr², or x itself."""
    sde = sde_lib.VESDE(N=4)
    score = GaussianData(mean=0.5, std=0.8, sde=sde).score

    def draw(**options):
        noise = GoldenNoise(0)
        sampler = pc_sampler(sde, "reverse_diffusion", "none", snr=0.1, **options)
        x, _ = sampler(
            score, noise.randn_like(torch.empty(2, 1, 2, 2, device=DEVICE)), noise.randn_like
        )
        return x, noise.next

    _, draws = draw()
    x, draws_without = draw(noise_removal=False)
    noisy, draws_noisy = draw(noise_removal=False, last_step_snr=0.5)
    assert (draws, draws_without, draws_noisy) == (5, 5, 6)
    extra = GoldenNoise(5).randn_like(x)
    torch.testing.assert_close(noisy, x + 2 * 0.5**2 * extra)


@pytest.mark.parametrize("name", ["vpsde", "subvpsde"])
def test_too_few_steps_for_beta_get_a_sentence(name):
    """β_i = β/N may not reach 1."""
    from configs import common

    config = common.base("CIFAR10")
    sde = sde_lib.SDES[name](config.model, 1000)
    config.sampling.num_scales = 20
    with pytest.raises(UserError, match=r"sampling\.num_scales"):
        sampling.from_config(config.sampling, sde)
    config.sampling.num_scales = 21
    sampler = sampling.from_config(config.sampling, sde)
    score = GaussianData(mean=0.5, std=0.8, sde=sde).score
    x, _ = sampler(score, torch.randn(8, 3, device=DEVICE))
    assert x.isfinite().all()
