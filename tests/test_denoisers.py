"""Denoisers of scores under every SDE, guided and not."""

import mixture
import pytest
import torch
from device_option import DEVICE
from mixture import each_sde

from models.scores import GuidedScore, Score
from samplers import grids
from samplers.denoisers import Denoiser
from samplers.fast import SAMPLERS, FastSampler
from sde_lib import VESDE, VPSDE


def test_times_of_a_constant_beta():
    """β0 = β1, where the quadratic equation of the VP SDE is none."""
    sde = VPSDE(beta_min=3.0, beta_max=3.0)
    assert sde.time(sde.noise_level(0.3)) == pytest.approx(0.3)


@each_sde
@pytest.mark.parametrize("sigma", [0.02, 0.4, 3.0, 40.0])
def test_the_denoiser_of_a_gaussian_is_its_posterior_mean(sde, sigma):
    """E[data | x] = mean + C (C + σ²I)⁻¹ (x − mean), whatever the SDE."""
    data = mixture.images(sde).first()
    x = data.means + sigma * data.noise(4)
    identity = torch.eye(8, dtype=torch.float64, device=DEVICE)
    gain = data.covariance @ torch.linalg.inv(data.covariance + sigma**2 * identity)
    exact = data.means + ((x - data.means).flatten(1) @ gain.T).reshape(x.shape)
    torch.testing.assert_close(data.denoiser()(x, sigma), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0106, 0.5, 100.0])
def test_the_denoiser_of_a_vp_network_takes_its_output_for_the_noise(sigma):
    """D = x − σ·net: the std that float32 cannot hold near t = 0 drops out."""
    sde, seen = VPSDE(), {}

    def net(x, cond):
        seen.update(x=x, cond=cond)
        return torch.cos(x)

    x = 1 + sigma * torch.randn(4, 3, 2, 2, dtype=torch.float64, device=DEVICE)
    denoised = Denoiser(Score(net, sde), sde)(x, sigma)
    assert seen["x"].dtype == seen["cond"].dtype == torch.float32
    assert denoised.dtype == torch.float64
    time = sde.time(sigma)
    torch.testing.assert_close(seen["cond"], torch.full((4,), 999 * time, device=DEVICE))
    x_t = sde.scale_and_std(time)[0] * x
    torch.testing.assert_close(seen["x"], x_t.float())
    off = denoised - (x - sigma * torch.cos(x_t.float()).double())
    assert off.abs().max() < 1e-6 * sigma


def test_guidance_is_in_the_interval_alone():
    """The classifier is asked at σ_lo < σ ≤ σ_hi; elsewhere the score is the prior's."""
    sde, asked = VESDE(), []

    def classifier(x, sigma):
        asked.append(sigma[0].item())
        return torch.stack([-(x - 1).square().flatten(1).sum(1), x.flatten(1).sum(1)], 1)

    def score(x, t):
        return -x

    guided = GuidedScore(score, classifier, sde, torch.tensor([0], device=DEVICE), scale=3.0)
    x = torch.randn(5, 3, device=DEVICE)
    for sigma, inside in ((0.1, False), (0.1001, True), (2.0, True), (2.0001, False)):
        asked.clear()
        denoised = Denoiser(guided, sde, interval=(0.1, 2.0))(x, sigma)
        assert len(asked) == inside
        assert torch.equal(denoised, Denoiser(guided if inside else score, sde)(x, sigma))

    sigmas = grids.karras(0.01, 50.0, 12)
    asked.clear()
    _, nfe = FastSampler(SAMPLERS["dpmpp_2m"], sde, sigmas, (0.1, 2.0))(guided, x)
    assert nfe == 12
    assert asked == pytest.approx([sigma for sigma in sigmas if 0.1 < sigma <= 2.0], rel=1e-4)
