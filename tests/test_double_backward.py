"""BatchNorm2d with a custom double backward, against PyTorch's own."""

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
