"""Layers that carry tangents: their reverse derivatives, against finite differences."""

import functools

import pytest
import torch
from device_option import DEVICE

from models import layers
from models.forward_mode import jvp
from models.tangents import NormAct, split_rows

B, TANGENTS = 2, 3


def rows(*shape):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn((1 + TANGENTS) * B, *shape, generator=generator, dtype=torch.float64)
    return x.to(DEVICE).requires_grad_()


@pytest.mark.parametrize("act", [layers.IDENTITY, layers.ACTIVATIONS["swish"]])
def test_group_norm_and_activation(act):
    norm = layers.GroupNorm(8).to(DEVICE).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = rows(8, 3, 2)
    check(functools.partial(norm, act=act), x)
    shift, kept = (
        torch.randn(B, 8, 1, 1, device=DEVICE).double(),
        torch.rand(B, 8, 3, 2, device=DEVICE).double(),
    )
    check(functools.partial(norm, act=act, shift=shift, kept=kept), x)

    shift = torch.randn(B, 8, 1, 1, dtype=torch.float64, requires_grad=True, device=DEVICE)
    kept = torch.rand(B, 8, 3, 2, dtype=torch.float64, device=DEVICE)

    def apply(x, shift, weight, bias):
        settings = norm.num_groups, norm.eps, act, TANGENTS
        return NormAct.apply(x, shift, kept, weight, bias, *settings)

    assert torch.autograd.gradcheck(apply, (x, shift, norm.weight, norm.bias))
    one_shift = shift[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(apply, (x, one_shift, norm.weight, norm.bias))


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activation(name):
    act = layers.ACTIVATIONS[name]
    x = rows(4, 3, 2)
    check(act, x)
    assert torch.autograd.gradcheck(lambda x: act(x, TANGENTS), (x,))


def test_add_to_values():
    x, shift = (
        rows(4, 3, 2),
        torch.randn(B, 4, 1, 1, dtype=torch.float64, requires_grad=True, device=DEVICE),
    )

    def apply(x, shift):
        return layers.add_to_values(x.clone(), shift, TANGENTS)

    out, derivatives = split_rows(apply(x, shift), TANGENTS)
    values, d = split_rows(x, TANGENTS)
    assert torch.equal(out, values + shift)
    assert torch.equal(derivatives, d)
    assert torch.autograd.gradcheck(apply, (x, shift))
    assert torch.autograd.gradcheck(apply, (x, shift[:1].detach().requires_grad_()))


def check(layer, x):
    """The rows are the layer's values and what forward mode gives as their derivatives."""
    values, d = split_rows(x, TANGENTS)
    out, derivatives = split_rows(layer(x, TANGENTS), TANGENTS)
    expected, expected_derivatives = jvp(layer, values, d)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(derivatives, expected_derivatives)
