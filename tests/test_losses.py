"""DSM and the optimiser step: parity, and the closed form for Gaussian data."""

import golden
import pytest
import torch
from device_option import DEVICE
from gaussian import GaussianData

import losses
import sde_lib
from models.scores import Score
from storage.ema import EMA
from utils import UserError

SDES = {"vp": sde_lib.VPSDE(), "subvp": sde_lib.SubVPSDE()}
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
    objective = losses.DSM(
        Score(net, sde), sde, entry["eps"], entry.get("likelihood_weighting", False)
    )
    loss = objective.loss(data["x"], data["u_t"], data["z"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(data["loss"].item(), rel=1e-5)
    check_gradient_norms(net, entry["grad_norm"])


@pytest.mark.parametrize("likelihood_weighting", [False, True])
@pytest.mark.parametrize("reduce_mean", [False, True])
@pytest.mark.parametrize("sde", [sde_lib.VESDE(), *SDES.values()], ids=lambda s: type(s).__name__)
def test_dsm_of_the_exact_score_is_its_closed_form(sde, likelihood_weighting, reduce_mean):
    torch.manual_seed(1)
    data = GaussianData(mean=0.3, std=0.7, sde=sde)
    count, shape = 20000, (3, 2, 2)
    x = data.sample(count, shape)
    for u in (0.1, 0.5, 0.9):
        times = torch.full((count,), u, device=DEVICE)
        objective = losses.DSM(data.score, sde, 1e-5, likelihood_weighting, reduce_mean)
        loss = objective.loss(x, times, torch.randn_like(x)).double()
        t = losses.draw_times(times[:1].double(), sde, 1e-5)
        expected = data.dsm_loss(t, shape, likelihood_weighting, reduce_mean)
        error = loss.std() / count**0.5
        assert abs(loss.mean() - expected) < 4 * error, u


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


def test_other_optimisers_get_a_sentence():
    with pytest.raises(UserError, match="expected Adam"):
        losses.make_optimizer([], config_optim(optimizer="SGD"))


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
