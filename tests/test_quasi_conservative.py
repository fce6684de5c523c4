"""The QC objective and constrained models: parity, and gradients against double backward."""

import golden
import pytest
import torch
from device_option import DEVICE
from oracles import double_backward
from test_losses import check_gradient_norms

import losses
import sde_lib
from models import jacobian
from models.scores import EnergyScore, Score
from storage.ema import EMA

VE = sde_lib.VESDE()


def images_first(v, x):
    """(K·B, …), slice-major, to (B, K, …)."""
    return v.reshape(-1, *x.shape).transpose(0, 1)


@pytest.mark.parametrize("name", golden.names("loss_qc"))
def test_the_regulariser_is_the_published_one(name):
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    net = golden.network(entry["model"])
    objective = losses.QuasiConservative(
        Score(net, VE), VE, entry["eps"], balancing_fac=entry["balancing_fac"]
    )
    v = images_first(data["v"], data["x"])
    assert v.shape[1] == entry["slices"]
    draws = {"u": data["u_t"], "z": data["z"], "v": v}
    loss, values = objective(data["x"], None, draws)
    loss.backward()
    dsm, regulariser = values["dsm"], values["regulariser"]
    assert float(loss.detach()) == float(values["loss"])
    assert float(dsm) == pytest.approx(float(data["loss"]), rel=1e-5)
    assert float(regulariser) == pytest.approx(float(data["reg"]), rel=1e-5)
    check_gradient_norms(net, entry["grad_norm"])


@pytest.mark.parametrize("name", [n for n in golden.names("loss_dsm") if "energy" in n])
def test_dsm_of_a_constrained_model_is_the_published_one(name):
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    net = golden.network(entry["model"])
    objective = losses.EnergyDSM(EnergyScore(net, VE), VE, entry["eps"])
    loss, _ = objective(data["x"], None, {"u": data["u_t"], "z": data["z"]})
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(data["loss"]), rel=1e-5)
    check_gradient_norms(net, entry["grad_norm"])


def test_four_optimiser_steps_are_the_published_ones():
    (name,) = golden.names("train_steps")
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    net = golden.load_rule_weights(golden.models.create_model(config_of(entry)), entry["tensors"])
    net.eval()
    parameters = list(net.parameters())
    optim = config_of(entry).optim
    optim.warmup = 2
    ema = EMA(parameters, config_of(entry).model.ema_rate)
    optimizer = losses.make_optimizer(parameters, optim)
    objective = losses.QuasiConservative(
        Score(net, VE), VE, 1e-5, balancing_fac=entry["balancing_fac"], slices=entry["slices"]
    )
    for step, (loss, regulariser) in enumerate(entry["losses"]):
        x, u, z, v = (data[f"{key}{step}"] for key in ("x", "u_t", "z", "v"))
        draws = {"u": u, "z": z, "v": images_first(v, x)}
        total, values = objective(x, None, draws)
        optimizer.zero_grad()
        total.backward()
        losses.optimize(optimizer, ema.parameters, step, optim)
        ema.update()
        assert float(values["dsm"]) == pytest.approx(loss, rel=1e-5)
        assert float(values["regulariser"]) == pytest.approx(regulariser, rel=1e-4)
    named = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}
    shadow = dict(zip(named, ema.shadow))
    assert ema.num_updates == entry["ema_num_updates"]
    assert len(ema.shadow) == entry["n_shadow"]
    for kind, ours in (("param", named), ("ema", shadow)):
        for n, expected in entry[f"{kind}_sum"].items():
            if n.endswith("NIN_1.b"):
                # The softmax does not see the keys' bias: its gradient is rounding, which Adam
                # scales up to whole steps.
                continue
            tolerance = 1e-5 * float(ours[n].abs().sum()) + 1e-6
            assert float(ours[n].double().sum()) == pytest.approx(expected, abs=tolerance), n
        for key, expected in data.items():
            if key.startswith(f"{kind}/"):
                torch.testing.assert_close(ours[key.split("/")[1]], expected, rtol=1e-4, atol=1e-6)


def config_of(entry):
    return golden.ConfigDict(entry["config"])


# ---------------------------------------------------------------- against double backward


def small_score():
    """A smooth score on (B, 1, 2, 2) in float64, with its network."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(4, 9), torch.nn.Tanh(),
        torch.nn.Linear(9, 4), torch.nn.Unflatten(1, (1, 2, 2)),
    ).to(DEVICE).double()  # fmt: skip
    return net, lambda x, cond: net(x) / cond[:, None, None, None]


def draws(slices):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(3, 1, 2, 2, generator=generator).to(DEVICE).double()
    u = torch.rand(3, generator=generator).to(DEVICE).double()
    z = torch.randn(3, 1, 2, 2, generator=generator).to(DEVICE).double()
    return x, u, z, torch.randn(3, slices, 1, 2, 2, generator=generator).to(DEVICE).double()


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("name", jacobian.ESTIMATORS)
def test_the_gradient_is_that_of_double_backward(name, slices):
    net, conditioned = small_score()
    score = Score(conditioned, VE)
    x, u, z, v = draws(slices)
    objective = losses.QuasiConservative(
        score, VE, 1e-5, balancing_fac=0.3, slices=slices, estimator=name
    )
    loss = double_backward.quasi_conservative(objective, x, u, z, v)
    expected = torch.autograd.grad(loss, net.parameters())
    ours, _ = objective(x, None, {"u": u, "z": z, "v": v})
    torch.testing.assert_close(ours.detach(), loss.detach())
    ours = torch.autograd.grad(ours, net.parameters())
    for a, b in zip(ours, expected):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_the_gradient_of_a_constrained_model_is_that_of_double_backward():
    net, conditioned = small_score()
    score = EnergyScore(conditioned, VE)
    x, u, z, _ = draws(1)
    loss = losses.DSM(score, VE, 1e-5).loss(x, u, z).mean()
    expected = torch.autograd.grad(loss, net.parameters())
    ours, _ = losses.EnergyDSM(score, VE, 1e-5)(x, None, {"u": u, "z": z})
    torch.testing.assert_close(ours.detach(), loss.detach())
    # A bias of the last layer that the energy does not see has no gradient in either.
    for a, b in zip(torch.autograd.grad(ours, net.parameters()), expected):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()
