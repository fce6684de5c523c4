"""Forward mode through plain networks: values, derivatives, their gradients, masks and cost."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import forward_mode
from models.forward_mode import jvp, push
from training.safeguards import Stopped
from utils import UserError


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


def halves():
    return nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(dim=1))


LAYERS = {
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "gated": halves,
    "group norm": lambda: nn.GroupNorm(2, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "batch norm in eval mode": lambda: nn.BatchNorm2d(8).eval(),
    "layer norm": lambda: Tokens(nn.LayerNorm(8)),
    "layer norm of whole images": lambda: nn.LayerNorm((8, 4, 4), elementwise_affine=False),
    "rms norm": lambda: Tokens(nn.RMSNorm(8)),
    "attention": lambda: Tokens(Attention()),
    "multihead attention": lambda: Tokens(Multihead()),
    "encoder layer": lambda: Tokens(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "dropout": lambda: nn.Dropout(0.5),
    "dropout of tokens": lambda: Tokens(nn.Dropout(0.5)),
    "dropout of channels": lambda: nn.Dropout2d(0.5),
    "resampling": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 2, 2), nn.SiLU(), nn.ConvTranspose2d(8, 8, 2, 2)
    ),
    "pooling": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")),
    "pixels moved": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Tanh(), nn.PixelShuffle(2)),
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
        out, derivatives = masked(jvp, network, x, v)
        return (weights * torch.cat([out[None], derivatives])).sum()

    with torch.no_grad():
        out, derivatives = masked(jvp, network, x, v)
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
def test_a_push_draws_the_masks_of_a_plain_pass(transposed):
    """In whatever order a map lies in memory; and leaves the generator as a plain pass does."""

    def network(x, cond):
        h = (x * cond[:, None, None, None]).transpose(1, 3) if transposed else x
        return torch.rand_like(h) * F.dropout(h, 0.5)

    x, cond = torch.randn(2, 3, 4, 5), torch.ones(2)
    torch.manual_seed(1)
    expected, after = network(x, cond), torch.get_rng_state()
    for directions in (torch.zeros(1, *x.shape), torch.zeros(3, *x.shape)):
        torch.manual_seed(1)
        out, _ = push(network, x, cond, directions)
        assert torch.equal(out, expected)
        assert torch.equal(torch.get_rng_state(), after)


def test_one_pass_gives_the_values_and_two_directions():
    """A push of m directions takes the products of 1 + m plain passes."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(2), nn.Linear(9, 9), nn.LayerNorm(9)
    )
    x = torch.randn(4, 3, 5, 5)

    def products(function, *arguments):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(*arguments)
        return counter.get_total_flops()

    plain = products(network, x)
    assert products(jvp, network, x, torch.randn(2, *x.shape)) == 3 * plain


class Cubed(torch.autograd.Function):
    """x³, a custom function that PyTorch has no rule to vectorise."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


def test_directions_take_turns_where_they_cannot_go_together():
    def cubed(x, cond):
        return F.dropout(Cubed.apply(x), 0.5)

    def written_out(x, cond):
        return F.dropout(x**3, 0.5)

    x = torch.randn(2, 5, requires_grad=True)
    cond, v = torch.ones(2), torch.randn(3, 2, 5)
    results = []
    for network in (cubed, written_out):
        torch.manual_seed(1)
        out, derivatives = push(network, x, cond, v)
        (gradient,) = torch.autograd.grad((out + derivatives).square().sum(), x)
        results.append((out, derivatives, gradient, torch.get_rng_state()))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError, Stopped])
def test_neither_lack_of_memory_nor_a_stop_is_tried_again(fault):
    calls = []

    def network(x):
        calls.append(x)
        raise fault

    x, v = torch.ones(1, 1), torch.ones(2, 1, 1)
    with pytest.raises(fault):
        jvp(network, x, v)
    assert len(calls) == 1
    out, derivatives = jvp(torch.square, x, v)
    assert out.item() == 1
    assert derivatives.flatten().tolist() == [2, 2]


def test_a_fault_of_the_network_is_said():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        jvp(nn.Linear(3, 3), torch.ones(1, 2), torch.ones(2, 1, 2))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)])
def test_norms_over_the_batch_get_a_sentence(norm):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 2, 1), norm)

        def forward(self, x, cond):
            return self.body(x)

    arguments = torch.ones(3, 2, 4, 4), torch.ones(3), torch.ones(1, 3, 2, 4, 4)
    with pytest.raises(UserError, match=r"Network has a batch norm \(body\.1\)"):
        push(Network(), *arguments)
    if norm.track_running_stats:
        push(Network().eval(), *arguments)


def test_a_network_that_pushes_itself_is_asked():
    class Network:
        pushes_directions = True

        def __call__(self, *arguments):
            return arguments

    assert push(Network(), 1, 2, 3) == (1, 2, 3)


def test_the_first_use_warns_of_nothing(monkeypatch):
    """Of what PyTorch's loading warns of, that is; the network's warnings remain."""

    def jvp(*arguments):
        warnings.warn("`torch.jit.script` is deprecated.", FutureWarning, stacklevel=2)

    monkeypatch.setattr(torch.func, "jvp", jvp)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward_mode._load.__wrapped__()
