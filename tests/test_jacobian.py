"""Both estimators against exact Jacobians, in float64."""

import itertools

import pytest
import torch
from device_option import DEVICE

from models import jacobian
from models.forward_mode import jvp

torch.manual_seed(0)
WEIGHTS = [torch.randn(6, 4, device=DEVICE).double(), torch.randn(4, 6, device=DEVICE).double()]


def field(x):
    """A small network on vectors (B, 4)."""
    return torch.tanh(x @ WEIGHTS[0].T) @ WEIGHTS[1].T


def exact(x):
    """J (B, 4, 4) at x (B, 4)."""
    return torch.func.vmap(torch.func.jacrev(field))(x[:, None])[:, 0, :, 0]


def products(x, v):
    _, p = jvp(field, x, v)
    return p, jacobian.vjp(field, x, v)


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


@pytest.mark.parametrize("name", jacobian.ESTIMATORS)
def test_unbiased_within_five_standard_errors(name):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, generator=generator).to(DEVICE).double()
    normal = torch.randn(20000, 2, 4, generator=generator).to(DEVICE).double()
    J = exact(x)
    expected = 0.5 * (J - J.transpose(1, 2)).square().sum((1, 2))
    values = jacobian.ESTIMATORS[name](*products(x, jacobian.rademacher(normal)))
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() < 5 * error).all()


def test_skew_is_never_negative_and_paper_is():
    x, v = (
        torch.randn(50, 4, device=DEVICE).double(),
        torch.randn(40, 50, 4, device=DEVICE).double().sign(),
    )
    p, q = products(x, v)
    assert jacobian.skew_asymmetry(p, q).min() >= 0
    assert jacobian.paper_asymmetry(p, q).min() < 0


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


def test_a_linear_field():
    A = torch.randn(4, 4, device=DEVICE).double()
    x, v = (
        torch.randn(3, 4, device=DEVICE).double(),
        torch.randn(6, 3, 4, device=DEVICE).double().sign(),
    )
    _, p = jvp(lambda x: x @ A.T, x, v)
    q = jacobian.vjp(lambda x: x @ A.T, x, v)
    torch.testing.assert_close(p, v @ A.T)
    torch.testing.assert_close(q, v @ A)
