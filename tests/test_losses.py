"""DSM and the optimiser step: parity, and the closed form for Gaussian data."""

import json
import math

import golden
import numpy as np
import pytest
import scipy.stats
import torch
from device_option import DEVICE
from gaussian import GaussianData
from ml_collections import ConfigDict

import losses
import sde_lib
from configs.demo import digits
from models.scores import Score
from storage.ema import EMA
from training import resuming
from utils import UserError

SDES = {"vp": sde_lib.VPSDE(), "subvp": sde_lib.SubVPSDE(), "cosine": sde_lib.CosineVPSDE()}
SIGMA_DATA = 0.7


def weighting(name):
    """The entry of `losses.WEIGHTINGS`."""
    return losses.WEIGHTINGS[name](ConfigDict({"model": {"sigma_data": SIGMA_DATA}}))


DSM_ENTRIES = [
    name for name in golden.names("loss_dsm") if not golden.manifest("qc")[name].get("energy")
]


def check_gradient_norms(net, expected):
    """Every parameter's gradient norm, to 1e-4."""
    ours = {
        n: float(p.grad.double().norm()) for n, p in net.named_parameters() if p.grad is not None
    }
    assert ours.keys() == expected.keys()
    scale = max(expected.values())
    for name, norm in expected.items():
        assert ours[name] == pytest.approx(norm, rel=1e-4, abs=1e-6 * scale), name


@pytest.mark.parametrize("name", DSM_ENTRIES)
def test_dsm_is_the_published_one(name):
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    net = golden.network(entry["model"])
    sde = SDES.get(name.rsplit("_", 1)[1], sde_lib.VESDE())
    name = "likelihood" if entry.get("likelihood_weighting") else "variance"
    objective = losses.DSM(Score(net, sde), sde, entry["eps"], weighting(name))
    loss = objective.loss(data["x"], data["u_t"], data["z"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(data["loss"].item(), rel=1e-5)
    check_gradient_norms(net, entry["grad_norm"])


@pytest.mark.parametrize("name", ["variance", "likelihood", "edm"])
@pytest.mark.parametrize("reduce_mean", [False, True])
@pytest.mark.parametrize("sde", [sde_lib.VESDE(), *SDES.values()], ids=lambda s: type(s).__name__)
def test_dsm_of_the_exact_score_is_its_closed_form(sde, name, reduce_mean):
    torch.manual_seed(1)
    data = GaussianData(mean=0.3, std=SIGMA_DATA, sde=sde)
    count, shape = 20000, (3, 2, 2)
    x = data.sample(count, shape)
    for u in (0.1, 0.5, 0.9):
        times = torch.full((count,), u, device=DEVICE)
        objective = losses.DSM(data.score, sde, 1e-5, weighting(name), reduce_mean)
        loss = objective.loss(x, times, torch.randn_like(x)).double()
        t = losses.draw_times(times[:1].double(), sde, 1e-5)
        expected = data.dsm_loss(t, shape, name, reduce_mean)
        error = loss.std() / count**0.5
        assert abs(loss.mean() - expected) < 4 * error, u


@pytest.mark.parametrize("sde", [sde_lib.VESDE(), *SDES.values()], ids=lambda s: type(s).__name__)
def test_log_normal_times_are_a_truncated_normal_of_ln_sigma(sde):
    """Against SciPy's distribution, at equidistant quantiles."""
    u = torch.arange(1, 200, dtype=torch.float32, device=DEVICE) / 200
    t = losses.log_normal_times(u, sde, 1e-3, mean=-1.0, std=1.5)
    assert t.dtype == u.dtype
    assert (t.min() >= 1e-3) & (t.max() <= sde.T)
    low, high = ((math.log(sde.noise_level(end)) + 1.0) / 1.5 for end in (1e-3, sde.T))
    expected = scipy.stats.truncnorm(low, high, loc=-1.0, scale=1.5).ppf(u.cpu().double())
    found = [math.log(sde.noise_level(time)) for time in t.tolist()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"weighting": "none such"}, "training.weighting"),
        ({"times": "none such"}, "training.times"),
        ({"weighting": "edm", "likelihood_weighting": True}, "likelihood_weighting"),
    ],
)
def test_weightings_that_cannot_be_get_a_sentence(fields, named):
    config = digits.get_config()
    config.training.update(fields)
    with pytest.raises(UserError, match=named):
        losses.score_objective(config, None, sde_lib.VESDE())


@pytest.mark.parametrize(
    ("field", "value"), [("weighting", "edm"), ("times", "log_normal"), ("log_sigma_std", 1.0)]
)
def test_a_run_goes_on_with_its_weighting_and_times_alone(field, value):
    now = digits.get_config()
    before = json.loads(now.to_json())
    assert resuming.require_same_run(before, now, "checkpoint.pth", 1) == []
    now.training[field] = value
    with pytest.raises(UserError, match=f"training.{field}"):
        resuming.require_same_run(before, now, "checkpoint.pth", 1)
    if field in ("weighting", "times"):  # older checkpoints do not hold them
        del before["training"][field]
        with pytest.raises(UserError, match=f"training.{field}"):
            resuming.require_same_run(before, now, "checkpoint.pth", 1)


def config_optim(**changes):
    from configs import common

    optim = common.base("CIFAR10").optim
    optim.update(changes)
    return optim


def test_warm_up_counts_from_zero_and_gradients_are_clipped():
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0], device=DEVICE))
    optim = config_optim(lr=0.1, warmup=4, grad_clip=1.0)
    optimizer = losses.make_optimizer([p], optim)
    rates = []
    for step in range(6):
        p.grad = torch.tensor([30.0, 40.0], device=DEVICE)
        norm = losses.optimize(optimizer, [p], step, optim)
        rates.append(optimizer.param_groups[0]["lr"])
        assert float(norm) == pytest.approx(50)
        torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8], device=DEVICE))
        if step == 0:
            torch.testing.assert_close(p.detach(), torch.tensor([3.0, 4.0], device=DEVICE))
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1])


def test_ema_follows_its_formula():
    p = torch.nn.Parameter(torch.zeros(2, device=DEVICE))
    frozen = torch.nn.Parameter(torch.ones(1, device=DEVICE), requires_grad=False)
    ema = EMA([frozen, p], decay=0.5)
    expected = torch.zeros(2, device=DEVICE)
    for n in range(1, 20):
        with torch.no_grad():
            p += n
        ema.update()
        expected = expected - (1 - min(0.5, (1 + n) / (10 + n))) * (expected - p.detach())
    torch.testing.assert_close(ema.shadow, [expected])
    raw = p.detach().clone()
    with ema.applied():
        torch.testing.assert_close(p.detach(), expected)
    assert torch.equal(p.detach(), raw)
