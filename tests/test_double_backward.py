"""BatchNorm2d with a custom double backward, against PyTorch's own."""

import pytest
import torch
from device_option import DEVICE
from oracles import published_way

from models import compute
from models.double_backward import BatchNorm2d


def layer_and_inputs(with_shortcut, dtype=torch.float64, memory_format=torch.contiguous_format):
    """A batch norm, and x, its weight and bias, and a shortcut or None."""
    torch.manual_seed(0)
    layer = BatchNorm2d(4).to(DEVICE, dtype)
    x = torch.randn(3, 4, 5, 6, device=DEVICE, dtype=dtype).to(memory_format=memory_format) + 1
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    shortcut = torch.randn_like(x).requires_grad_() if with_shortcut else None
    return layer, [x.requires_grad_(), *layer.parameters(), shortcut]


def gradients(normalise, inputs, relu):
    """Of a function of the outputs and of the gradients of x and the shortcut."""
    x, *_, shortcut = inputs
    y = normalise(x, shortcut, relu)
    v = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=DEVICE).reshape(y.shape)
    penalised = [each for each in (x, shortcut) if each is not None]
    first = torch.autograd.grad((v * y.sin()).sum(), penalised, create_graph=True)
    loss = (y * v.flip(0)).sum() + sum((g.cos() * g).sum() for g in first)
    variables = [each for each in inputs if each is not None]
    return [y, *first, *torch.autograd.grad(loss, variables)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_norms(relu, with_shortcut, memory_format):
    """Values, first and second derivatives of inputs and shortcuts, weights' first ones."""
    layer, inputs = layer_and_inputs(with_shortcut, memory_format=memory_format)
    ours = gradients(layer.normalise, inputs, relu)
    theirs = gradients(lambda *i: published_way.normalise(layer, *i), inputs, relu)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_compiled_kernels_give_the_same():
    layer, inputs = layer_and_inputs(with_shortcut=True, dtype=torch.float32)
    eager = gradients(layer.normalise, inputs, relu=True)
    compute.compile_layers(torch.nn.Sequential(layer))
    assert layer.kernels is not None
    compiled = gradients(layer.normalise, inputs, relu=True)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
