"""Jacobian-vector products of any module: values, derivatives, their gradients, masks, cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.jvp import network_value_and_jvp, value_and_jvp


class Tokens(nn.Module):
    """A layer on the pixels of maps (B, C, H, W), as tokens (B, H·W, C)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2).mT).mT.reshape(x.shape)


class Attention(nn.Module):
    """Two heads of scaled dot products, which PyTorch would fuse."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 24)

    def forward(self, tokens):
        q, k, v = (t.unflatten(2, (2, 4)).mT for t in self.linear(tokens).chunk(3, 2))
        return F.scaled_dot_product_attention(q, k, v).mT.flatten(2)


class Multihead(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)

    def forward(self, tokens):
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


LAYERS = {
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "batch norm in eval mode": lambda: nn.BatchNorm2d(8).eval(),
    "layer norm": lambda: Tokens(nn.LayerNorm(8)),
    "attention": lambda: Tokens(Attention()),
    "multihead attention": lambda: Tokens(Multihead()),
    "dropout": lambda: nn.Dropout(0.5),
    "dropout of tokens": lambda: Tokens(nn.Dropout(0.5)),
    "resampling": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 2, 2), nn.SiLU(), nn.ConvTranspose2d(8, 8, 2, 2)
    ),
}


def between_convolutions(layer):
    """A float64 network of x (B, 2, 4, 4) around a layer for 8 channels, and x."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), layer, nn.Conv2d(8, 2, 3, padding=1))
    return network.double(), torch.randn(3, 2, 4, 4).double()


def masked(function, *arguments):
    """A call with the same masks at every call."""
    torch.manual_seed(5)
    return function(*arguments)


@pytest.mark.parametrize("name", LAYERS)
def test_values_derivatives_and_gradients_are_those_of_finite_differences(name):
    """Also of the derivatives' own gradient, with respect to x and to the parameters."""
    network, x = between_convolutions(LAYERS[name]())
    v = torch.randn(2, *x.shape).double()
    weights = torch.randn(3, *x.shape).double()
    h = 1e-5

    def value(x):
        out, derivatives = masked(value_and_jvp, network, x, v)
        return (weights * torch.cat([out[None], derivatives])).sum()

    with torch.no_grad():
        out, derivatives = masked(value_and_jvp, network, x, v)
        torch.testing.assert_close(out, masked(network, x))
        for direction, derivative in zip(v, derivatives):
            ends = [masked(network, x + side * h * direction) for side in (1, -1)]
            torch.testing.assert_close(derivative, (ends[0] - ends[1]) / (2 * h), rtol=0, atol=1e-6)

    variables = [x.requires_grad_(), *network.parameters()]
    gradients = torch.autograd.grad(value(x), variables, allow_unused=True)
    steps = [torch.randn_like(variable) for variable in variables]
    along = sum((g * s).sum() for g, s in zip(gradients, steps) if g is not None)
    ends = []
    for side in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(variables, steps, alpha=side * h)
            ends.append(value(x))
            torch._foreach_add_(variables, steps, alpha=-side * h)
    expected = (ends[0] - ends[1]) / (2 * h)
    assert float(along) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_masks_are_those_of_an_ordinary_pass(transposed):
    """In whatever order a map lies in memory; and leaves the generator as a plain pass does."""

    def network(x, cond):
        h = (x * cond[:, None, None, None]).transpose(1, 3) if transposed else x
        return torch.rand_like(h) * F.dropout(h, 0.5)

    x, cond = torch.randn(2, 3, 4, 5), torch.ones(2)
    torch.manual_seed(1)
    expected, after = network(x, cond), torch.get_rng_state()
    for directions in (torch.zeros(1, *x.shape), torch.zeros(3, *x.shape)):
        torch.manual_seed(1)
        out, _ = network_value_and_jvp(network, x, cond, directions)
        assert torch.equal(out, expected)
        assert torch.equal(torch.get_rng_state(), after)


def test_one_pass_gives_the_values_and_two_directions():
    """m vectors take the products of 1 + m ordinary passes."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(2), nn.Linear(9, 9), nn.LayerNorm(9)
    )
    x = torch.randn(4, 3, 5, 5)

    def products(function, *arguments):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(*arguments)
        return counter.get_total_flops()

    plain = products(network, x)
    assert products(value_and_jvp, network, x, torch.randn(2, *x.shape)) == 3 * plain
