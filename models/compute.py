"""How networks compute, as ``config.compute`` says: precision, memory format, compiled layers.

What lies between the convolutions is compiled: there is nothing to gain in the convolutions, which
are a library's, and small pieces compile in seconds. A piece is compiled once per shape, whatever
the depth of the network, and gradients pass through it once.
"""

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import twice
from models.elementary import Elementary
from models.layers import GroupNorm, ResidualSum
from models.resnet import BatchNorm2d
from utils import lookup

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""``config.compute.precision`` -> the type that convolutions and matrix products compute in."""

COMPILED = GroupNorm, ResidualSum

# The shapes of layers, with and without gradients and tangents, that one network may have.
SHAPES = 1024


def prepare(network, compute, device):
    """Move `network` to `device` and let it compute as `compute` (``config.compute``) says.

    Its inputs and outputs stay float32. tf32 holds for the whole process: with it, CUDA's float32
    products keep 10 bits of their factors; otherwise they keep all, convolutions too.

    Returns:
        The network.

    Raises:
        UserError: an unknown precision.
    """
    dtype = lookup(AUTOCAST, compute.precision, "config.compute.precision")
    exact = compute.precision != "tf32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    network.to(device)
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    if compute.compile:
        compile_layers(network)
    if dtype is not None:
        network.forward = torch.autocast(device.type, dtype)(network.forward)
    return network


def compile_layers(network):
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * SHAPES
    kernels = {name: compiled(kernel) for name, kernel in twice.KERNELS.items()}
    for layer in network.modules():
        if isinstance(layer, COMPILED):
            layer.forward = compiled(layer.forward)
        if isinstance(layer, BatchNorm2d):
            layer.kernels = kernels


def compiled(function):
    return torch.compile(function, dynamic=False)


@contextlib.contextmanager
def exact_products():
    """Within the context CUDA's float32 products, convolutions too, keep all bits of factors."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def plain():
    """Within the context networks are plain operations: no compiled code, no fused attention.

    What PyTorch's compiler would differentiate a second time has to be.
    """
    with torch.compiler.set_stance("force_eager"), twice_differentiable():
        yield


@contextlib.contextmanager
def twice_differentiable():
    """Within the context attention and, as `models.elementary` says, norms have second derivatives.

    What is compiled has them where it has none of the compiler's, as `models.twice`.
    """
    with sdpa_kernel(SDPBackend.MATH), Elementary():
        yield
