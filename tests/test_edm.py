"""EDM's preconditioning: closed forms on Gaussian data, its loss, and its tangents."""

import functools

import pytest
import tiny
import torch
from device_option import DEVICE
from gaussian import GaussianData

import losses
import models
import sde_lib
from configs.demo import digits_edm
from models import jacobian
from models.edm import EDM
from models.jvp import network_value_and_jvp
from models.scores import Score
from utils import UserError

SIGMA_DATA = 0.6
VE = sde_lib.VESDE(0.002, 80.0)
PRECONDITIONED = {"model__preconditioning": "edm", "model__scale_by_sigma": False}


def coefficients(sigma):
    """c_skip, c_out, c_in and c_noise of Karras et al. (2022), table 1, column EDM."""
    variance = sigma**2 + SIGMA_DATA**2
    c_skip, c_out = SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / variance.sqrt()
    return c_skip, c_out, 1 / variance.sqrt(), sigma.log() / 4


class Target(torch.nn.Module):
    """F of the exact denoiser D of Gaussian data: (D − c_skip x)/c_out at c_in·x."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, scaled, condition):
        sigma = torch.exp(4 * torch.log(condition))  # c_noise is the logarithm of the condition
        sigma = sigma[:, None, None, None]
        c_skip, c_out, c_in, _ = coefficients(sigma)
        x = scaled / c_in
        D = (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)
        return (D - c_skip * x) / c_out


def batch(count=6):
    torch.manual_seed(0)
    t = torch.linspace(0, 1, count, dtype=torch.float64, device=DEVICE)
    return torch.randn(count, 2, 3, 3, device=DEVICE).double() * 5, t


def test_with_fs_target_the_score_is_the_exact_one():
    x, t = batch()
    for mean, std in ((0.0, SIGMA_DATA), (0.3, 0.2)):
        exact = GaussianData(mean=mean, std=std, sde=VE).score(x, t)
        network = EDM(Target(mean, std), SIGMA_DATA)
        torch.testing.assert_close(Score(network, VE)(x, t), exact, rtol=1e-8, atol=1e-8)


def test_the_weighted_dsm_is_the_regression_of_fs_target():
    """λ‖D − y‖² = ‖F − (y − c_skip·x)/c_out‖²."""
    torch.manual_seed(1)
    network = torch.nn.Conv2d(2, 2, 3, padding=1).to(DEVICE).double()
    seen = []

    def F(x, condition):
        seen.append(network(x) + condition[:, None, None, None])
        return seen[-1]

    config = digits_edm.get_config()
    config.model.sigma_data = SIGMA_DATA
    weighting = losses.WEIGHTINGS["edm"](config)
    objective = losses.DSM(Score(EDM(F, SIGMA_DATA), VE), VE, 1e-5, weighting)
    y, u = batch()
    z = torch.randn_like(y)
    loss = objective.loss(y, u, z)
    sigma = VE.sigma(losses.draw_times(u, VE, 1e-5))[:, None, None, None]
    c_skip, c_out, _, _ = coefficients(sigma)
    target = (y - c_skip * (y + sigma * z)) / c_out
    expected = 0.5 * (seen[0] - target).square().flatten(1).sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)


def test_tangents_pass_through():
    """Of a network that carries them, and of one that does not: as by `torch.func.jvp`."""
    config = tiny.config("cache", **PRECONDITIONED, model__dropout=0.0)
    x, t = torch.rand(2, 1, 8, 8).double(), torch.rand(2).double() + 0.1
    for network in (models.create_model(config), EDM(First(), 0.5)):
        network = network.double().requires_grad_(False)
        v = torch.randn(2, *x.shape).double()
        value, Jv = network_value_and_jvp(network, x, t, v)
        torch.testing.assert_close(value, network(x, t))
        by_pytorch = jacobian.value_and_jvp(functools.partial(network, sigma=t), x, v)
        torch.testing.assert_close((value, Jv), by_pytorch)


class First(torch.nn.Module):
    def forward(self, x, condition):
        return torch.tanh(x)


def test_it_is_for_the_continuous_ve_sde():
    config = tiny.config("cache", **PRECONDITIONED, training__sde="vpsde")
    with pytest.raises(UserError, match=r"model\.preconditioning"):
        models.create_score(config, models.create_model(config), sde_lib.from_config(config))


def test_a_network_that_divides_by_its_condition_is_refused():
    config = tiny.config("cache", model__preconditioning="edm", model__scale_by_sigma=True)
    with pytest.raises(UserError, match=r"model\.scale_by_sigma"):
        models.create_model(config)


@pytest.mark.parametrize(
    ("embedding", "continuous", "sde"),
    [("positional", True, "vesde"), ("fourier", False, "vesde"), ("positional", True, "vpsde")],
)
def test_an_embedding_of_another_condition_is_refused(embedding, continuous, sde):
    """Under the VE SDE: labels are no noise levels."""
    changes = {"model__embedding_type": embedding, "training__continuous": continuous}
    config = tiny.config("cache", training__sde=sde, **changes)
    build = functools.partial(models.create_score, config, First(), sde_lib.from_config(config))
    if sde == "vpsde":
        build()
        return
    with pytest.raises(UserError, match=r"model\.embedding_type.*training\.continuous"):
        build()
