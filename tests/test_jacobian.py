"""Both estimators against exact Jacobians, in float64."""

import itertools

import golden
import pytest
import torch
from device_option import DEVICE

import models
import sde_lib
from models import jacobian
from models.jacobian import value_and_jvp
from models.scores import EnergyScore, Score

torch.manual_seed(0)
WEIGHTS = [torch.randn(6, 4, device=DEVICE).double(), torch.randn(4, 6, device=DEVICE).double()]


def field(x):
    """A small network on vectors (B, 4)."""
    return torch.tanh(x @ WEIGHTS[0].T) @ WEIGHTS[1].T


def exact(x):
    """J (B, 4, 4) at x (B, 4)."""
    return torch.func.vmap(torch.func.jacrev(field))(x[:, None])[:, 0, :, 0]


def vjp(f, x, v):
    """Of a function of x alone."""
    return jacobian.vjp(lambda x, t: f(x), x, torch.zeros(len(x)), v)


def products(x, v):
    _, p = value_and_jvp(field, x, v)
    return p, vjp(field, x, v)


def test_products_are_those_of_the_jacobian():
    x, v = torch.randn(3, 4, device=DEVICE).double(), torch.randn(5, 3, 4, device=DEVICE).double()
    J = exact(x)
    p, q = products(x, v)
    torch.testing.assert_close(p, torch.einsum("bij,kbj->kbi", J, v))
    torch.testing.assert_close(q, torch.einsum("bji,kbj->kbi", J, v))


@pytest.mark.parametrize("name", jacobian.ESTIMATORS)
def test_over_a_full_sign_basis_the_mean_is_exact(name):
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), device=DEVICE).double()
    x = torch.randn(3, 4, device=DEVICE).double()
    v = signs[:, None].expand(-1, 3, -1)
    J = exact(x)
    expected = 0.5 * (J - J.transpose(1, 2)).square().sum((1, 2))
    values = jacobian.ESTIMATORS[name](*products(x, v))
    torch.testing.assert_close(values.mean(0), expected, rtol=1e-12, atol=1e-12)


def test_partial_derivatives():
    p, q = (
        torch.randn(2, 3, 4, device=DEVICE).double(),
        torch.randn(2, 3, 4, device=DEVICE).double(),
    )
    over_p, over_q = jacobian.partial_derivatives(jacobian.paper_asymmetry, p, q)
    torch.testing.assert_close(over_p, -q)
    torch.testing.assert_close(over_q, 2 * q - p)
    over_p, over_q = jacobian.partial_derivatives(jacobian.skew_asymmetry, p, q)
    torch.testing.assert_close(over_p, p - q)
    torch.testing.assert_close(over_q, q - p)


# ---------------------------------------------------------------- several vectors at once


def ncsnpp():
    """A small NCSN++ that drops out half of its units, in float64, and images and times for it."""
    torch.manual_seed(0)
    config = golden.ConfigDict(
        golden.manifest("qc")[golden.manifest("qc")["loss_dsm"]["model"]]["config"]
    )
    config.model.dropout = 0.5
    config.model.init_scale = 1.0
    size = config.data.image_size
    x = torch.rand(2, config.data.num_channels, size, size, dtype=torch.float64)
    return models.create_model(config).double().train(), x, torch.rand(2, dtype=torch.float64)


def pytorch_dropout():
    """The same of PyTorch's own layers."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(2, 9, 3, padding=1), torch.nn.Dropout2d(0.5), torch.nn.Tanh(),
        torch.nn.Dropout(0.5), torch.nn.Conv2d(9, 2, 3, padding=1),
    ).double()  # fmt: skip
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    return WithoutCondition(layers), x, torch.rand(3, dtype=torch.float64)


class WithoutCondition(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, condition):
        return self.layers(x)


@pytest.mark.parametrize("kind", [Score, EnergyScore])
@pytest.mark.parametrize("make", [ncsnpp, pytorch_dropout])
def test_several_vectors_at_once_are_several_in_turn(make, kind):
    """In one forward pass, through one masked network."""
    net, x, t = make()
    score = kind(net, sde_lib.VESDE())
    v = torch.randn(3, *x.shape, dtype=torch.float64).sign()

    def of(v):
        torch.manual_seed(7)
        return jacobian.vjp(score, x, t, v), float(torch.rand(()))

    in_turn, states = zip(*(of(w[None]) for w in v))
    calls = []
    net.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    at_once, state = of(v)
    torch.testing.assert_close(at_once, torch.cat(in_turn), rtol=1e-9, atol=1e-12)
    assert set(states) == {state}
    assert calls == [len(x)]
    net.eval()
    assert not torch.allclose(at_once, jacobian.vjp(score, x, t, v))
