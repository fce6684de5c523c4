"""Conv2d and BatchNorm2d with a custom double backward, against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from device_option import DEVICE

from models import compute, double_backward
from models.double_backward import BatchNorm2d

EPS = 1e-5


def reference_norm(x, weight, bias, shortcut, relu):
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    y = y if shortcut is None else y + shortcut
    return F.relu(y) if relu else y


def norm(x, weight, bias, shortcut, relu):
    return double_backward.normalise(x, weight, bias, EPS, shortcut, relu, double_backward.KERNELS)


def convolve(x, weight, stride):
    return double_backward.convolve(x, weight, (stride, stride), (1, 1))


def reference_convolve(x, weight, stride):
    return F.conv2d(x, weight, None, stride, 1)


def norm_inputs(with_shortcut, memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6, device=DEVICE).double().to(memory_format=memory_format) + 1
    weight, bias = torch.randn(4, device=DEVICE).double(), torch.randn(4, device=DEVICE).double()
    inputs = [x, weight, bias] + ([torch.randn_like(x)] if with_shortcut else [])
    return [tensor.requires_grad_() for tensor in inputs]


def gradients(layer, inputs, penalised):
    """Of a function of the outputs and of the gradients of the inputs in `penalised`."""
    y = layer(*inputs)
    v = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=DEVICE).reshape(y.shape)
    first = torch.autograd.grad(
        (v * y.sin()).sum(), [inputs[i] for i in penalised], create_graph=True
    )
    loss = (y * v.flip(0)).sum() + sum((g.cos() * g).sum() for g in first)
    return [y, *first, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_norms(relu, with_shortcut, memory_format):
    """Values, first and second derivatives of inputs and shortcuts, weights' first ones."""
    inputs = norm_inputs(with_shortcut, memory_format)
    missing = [None] * (4 - len(inputs))
    penalised = [0, 3] if with_shortcut else [0]
    ours = gradients(lambda *i: norm(*i, *missing, relu), inputs, penalised)
    theirs = gradients(lambda *i: reference_norm(*i, *missing, relu), inputs, penalised)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(stride):
    torch.manual_seed(0)
    x, weight = (
        torch.randn(2, 3, 6, 6, device=DEVICE).double(),
        torch.randn(4, 3, 3, 3, device=DEVICE).double(),
    )
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    ours = gradients(lambda *i: convolve(*i, stride), inputs, [0])
    theirs = gradients(lambda *i: reference_convolve(*i, stride), inputs, [0])
    torch.testing.assert_close(ours, theirs)


def test_the_inputs_gradient_costs_no_weights_gradient(monkeypatch):
    """Asked for the gradient of the images alone, no convolution computes its weight's."""
    calls = []
    weight_gradient = double_backward.conv2d_weight
    monkeypatch.setattr(
        double_backward, "conv2d_weight", lambda *a: calls.append(1) or weight_gradient(*a)
    )
    x, weight = (
        torch.rand(1, 1, 4, 4, device=DEVICE),
        torch.rand(1, 1, 3, 3, requires_grad=True, device=DEVICE),
    )
    x.requires_grad_()
    y = convolve(convolve(x, weight, 1), weight, 1)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert not calls
    first.square().sum().backward()
    assert len(calls) == 2  # y's own pass adds nothing: it is linear
    (convolve(x, weight, 1)).sum().backward()
    assert len(calls) == 3


@pytest.mark.slow
def test_compiled_kernels_give_the_same():
    inputs = [tensor.detach().float().requires_grad_() for tensor in norm_inputs(True)]
    layer = BatchNorm2d(4)
    compute.compile_layers(torch.nn.Sequential(layer))
    assert layer.kernels is not None
    with torch.no_grad():
        layer.weight.copy_(inputs[1])
        layer.bias.copy_(inputs[2])

    def compiled(x, weight, bias, shortcut):
        return double_backward.normalise(x, weight, bias, EPS, shortcut, True, layer.kernels)

    both = [
        gradients(function, inputs, [0, 3]) for function in (compiled, lambda *i: norm(*i, True))
    ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
