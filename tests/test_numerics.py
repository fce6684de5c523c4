"""Losses and their gradients at both ends of the noise, against float64 and double backward.

The references take every derivative by create_graph on a float64 copy of the network; what is
tested pushes tangents, in float32 and with config.compute.precision bf16.
"""

import copy

import golden
import pytest
import test_dlsm
import tiny
import torch
from oracles import double_backward

import losses
import models
import sde_lib
from models import compute, jacobian
from models.jacobian import eager_higher_derivatives
from models.scores import EnergyScore, Score

VE = sde_lib.VESDE()  # σ from 0.01 to 50
ENDS = {0.01: 0.0, 50.0: 1.0}  # σ -> u, the time as a share of the way from eps to T
EPS = 1e-5
FACTOR = 1e-2


def networks():
    """A network with attention and two resolutions, and its float64 copy."""
    config = tiny.config("cache", model__dropout=0.0, model__ch_mult=(1, 2))
    config.model.attn_resolutions = (4,)
    net = models.create_model(config).eval()
    for name, value in net.state_dict().items():
        if not name.endswith("sigmas"):
            value.copy_(golden.rule_weight(name, tuple(value.shape)))
    return net, copy.deepcopy(net).double()


NET, NET64 = networks()


def draws(sigma, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shape = (4, 1, 8, 8)
    x = torch.rand(shape, generator=generator)
    z = torch.randn(shape, generator=generator)
    v = torch.randn((4, 2, *shape[1:]), generator=generator)
    u = torch.full((4,), ENDS[sigma])
    return [tensor.to(dtype) for tensor in (x, u, z, v)]


def gradients(scalar, net):
    """The gradients of a network's parameters as float64, with the norm of all of them."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad(scalar, parameters, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]
    flat = torch.cat([g.double().flatten() for g in found])
    return flat, flat.norm()


def prepared(net, precision):
    """A copy of a network that computes as ``config.compute.precision`` says."""
    settings = tiny.config("cache", compute__precision=precision).compute
    return compute.prepare(copy.deepcopy(net), settings, torch.device("cpu"))


NETS = {precision: prepared(NET, precision) for precision in ("fp32", "bf16")}
ERRORS = {"fp32": (1e-5, 1e-3), "bf16": (0.05, 0.2)}  # relative, of losses and of gradients


def compare(loss, scalar, reference, precision, net=None, net64=NET64):
    loss_error, gradient_error = ERRORS[precision]
    net = net or NETS[precision]
    expected, scale = gradients(reference, net64)
    ours, _ = gradients(scalar, net)
    assert ours.isfinite().all()
    assert float(loss) == pytest.approx(float(reference.detach()), rel=loss_error)
    assert float((ours - expected).norm() / scale) < gradient_error


@pytest.mark.parametrize("precision", NETS)
@pytest.mark.parametrize("sigma", ENDS)
def test_dsm_at_both_ends(sigma, precision):
    x, u, z, _ = draws(sigma)
    loss = losses.DSM(Score(NETS[precision], VE), VE, EPS).loss(x, u, z).mean()
    x, u, z, _ = draws(sigma, torch.float64)
    t = u * (1 - EPS) + EPS
    std = (0.01 * 5000**t)[:, None, None, None]
    assert float(std[0]) == pytest.approx(sigma, rel=1e-3)
    s = NET64(x + std * z, std.flatten())
    reference = 0.5 * (s * std + z).square().flatten(1).sum(1).mean()
    compare(loss.detach(), loss, reference, precision)


@pytest.mark.parametrize("precision", NETS)
@pytest.mark.parametrize("sigma", ENDS)
@pytest.mark.parametrize("estimator", jacobian.ESTIMATORS)
def test_quasi_conservative_at_both_ends(estimator, sigma, precision):
    def objective(net):
        return losses.QuasiConservative(
            Score(net, VE), VE, EPS, balancing_fac=FACTOR, estimator=estimator
        )

    drawn = dict(zip("xuzv", draws(sigma)))
    loss, _ = objective(NETS[precision])(drawn.pop("x"), None, drawn)
    reference = double_backward.quasi_conservative(objective(NET64), *draws(sigma, torch.float64))
    compare(loss.detach(), loss, reference, precision)


@pytest.mark.parametrize("sigma", ENDS)
def test_a_constrained_model_at_both_ends(sigma):
    x, u, z, _ = draws(sigma)
    objective = losses.EnergyDSM(EnergyScore(NETS["fp32"], VE), VE, EPS)
    scalar, values = objective(x, None, {"u": u, "z": z})
    x, u, z, _ = draws(sigma, torch.float64)
    t = losses.draw_times(u, VE, EPS)
    x_t, std = sde_lib.perturb(VE, x, t, z)
    x_t.requires_grad_()
    with eager_higher_derivatives():
        energy = -0.5 * NET64(x_t, std).square().flatten(1).sum(1) / std
    (s,) = torch.autograd.grad(energy.sum(), x_t, create_graph=True)
    reference = 0.5 * (s * std[:, None, None, None] + z).square().flatten(1).sum(1).mean()
    compare(values["loss"], scalar, reference, "fp32")


@pytest.mark.parametrize("precision", NETS)
@pytest.mark.parametrize("weighting", [0.0, 1.0])
@pytest.mark.parametrize("sigma", ENDS)
def test_dlsm_at_both_ends(sigma, weighting, precision):
    classifier, score, x, labels, noise = test_dlsm.small_problem(torch.float32)
    classifier.eval()
    noise["u"] = torch.full_like(noise["u"], ENDS[sigma])
    classifier64 = copy.deepcopy(classifier).double()
    classifier = prepared(classifier, precision)

    def terms(dlsm, network, dtype):
        objective = losses.DLSM(network, score, VE, EPS, weighting_dlsm=weighting)
        cast = {name: value.to(dtype) for name, value in noise.items()}
        return sum(dlsm(objective, x.to(dtype), labels, **cast))

    loss = terms(losses.DLSM.terms, classifier, torch.float32)
    reference = terms(double_backward.dlsm, classifier64, torch.float64)
    compare(loss.detach(), loss, reference, precision, classifier, classifier64)
