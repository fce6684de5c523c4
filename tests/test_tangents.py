"""Layers that carry tangents: their reverse derivatives, against finite differences."""

import functools

import pytest
import torch
from device_option import DEVICE

from models import layers
from models.dropout import apply_mask, dropout_gain, dropout_mask
from models.jvp import NormAct, split_rows, value_and_jvp

B, TANGENTS = 2, 3


def rows(*shape):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn((1 + TANGENTS) * B, *shape, generator=generator, dtype=torch.float64)
    return x.to(DEVICE).requires_grad_()


@pytest.mark.parametrize("act", [layers.IDENTITY, layers.SWISH], ids=["identity", "swish"])
def test_group_norm_and_activation(act):
    norm = layers.GroupNorm(8).to(DEVICE).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = rows(8, 3, 2)
    check(functools.partial(norm, act=act), x)
    shift = torch.randn(B, 8, 1, 1, device=DEVICE).double()
    kept = torch.rand(B, 8, 3, 2, device=DEVICE) > 0.3
    check(functools.partial(norm, act=act, shift=shift, kept=kept, gain=1.7), x)

    shift = shift.clone().requires_grad_()

    def apply(x, shift, weight, bias):
        settings = norm.num_groups, norm.eps, act, TANGENTS
        return NormAct.apply(x, shift, kept, 1.7, weight, bias, *settings)

    assert torch.autograd.gradcheck(apply, (x, shift, norm.weight, norm.bias))
    one_shift = shift[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(apply, (x, one_shift, norm.weight, norm.bias))


def test_dropout_keeps_units_by_their_probability_and_scales_them():
    """Units are kept where uniform draws are at least p, and divided by 1 − p."""
    p, x = 0.15, torch.rand(B, 8, 4, 4) + 1
    torch.manual_seed(3)
    mask = dropout_mask(x.shape, p, x.device)
    torch.manual_seed(3)
    factors = torch.rand(x.shape).ge_(p).div_(1 - p)
    assert mask.dtype == torch.bool
    assert torch.equal(apply_mask(x, mask, dropout_gain(p)), x * factors)


def check(layer, x):
    """The rows are the layer's values and what forward mode gives as their derivatives."""
    values, d = split_rows(x, TANGENTS)
    out, derivatives = split_rows(layer(x, TANGENTS), TANGENTS)
    expected, expected_derivatives = value_and_jvp(layer, values, d)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(derivatives, expected_derivatives)
