"""Layers that carry tangents: their reverse derivatives, against finite differences."""

import functools

import pytest
import torch
from device_option import DEVICE

from models import jvp, layers
from models.dropout import dropout_gain, dropout_mask
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tangents", [0, TANGENTS])
def test_dropout_keeps_a_byte_a_unit_and_the_numbers_of_factors(tangents, dtype, monkeypatch):
    """Factors, drawn as the mask is, divided by 1 − p and multiplied in float32: bit for bit."""
    p, shape = 0.15, (B, 8, 4, 4)
    norm, act = layers.GroupNorm(8), layers.SWISH
    x = torch.randn((1 + tangents) * B, *shape[1:]).to(dtype)
    cotangent = torch.randn_like(x)

    def run(**dropout):
        """The rows, their gradient, and the bytes kept for it."""
        rows, kept = x.clone().requires_grad_(), {}
        note = functools.partial(note_bytes, kept)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = norm(rows, tangents, act, **dropout)
        return out, *torch.autograd.grad(out, rows, cotangent), sum(kept.values())

    torch.manual_seed(3)
    mask = dropout_mask(shape, p, x.device)
    dropout = {"kept": mask, "gain": dropout_gain(p)}
    out, grad, kept = run(**dropout)
    *_, without = run()
    assert kept - without == mask.numel()

    torch.manual_seed(3)
    factors = torch.rand(shape).ge_(p).div_(1 - p)
    for module in (jvp, layers):
        monkeypatch.setattr(module, "apply_mask", lambda x, kept, gain: x * factors.view_as(kept))
    expected, expected_grad, kept = run(**dropout)
    assert torch.equal(out, expected)
    assert torch.equal(grad, expected_grad)
    if not tangents:
        assert kept - without == 4 * mask.numel()


def note_bytes(kept, tensor):
    """Note a tensor's bytes in the dict `kept`, once for each storage."""
    storage = tensor.untyped_storage()
    kept[storage.data_ptr()] = storage.nbytes()
    return tensor


def check(layer, x):
    """The rows are the layer's values and what forward mode gives as their derivatives."""
    values, d = split_rows(x, TANGENTS)
    out, derivatives = split_rows(layer(x, TANGENTS), TANGENTS)
    expected, expected_derivatives = value_and_jvp(layer, values, d)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(derivatives, expected_derivatives)
