"""How networks compute, as ``config.compute`` says: precision, memory format, compiled layers.

Only norms, activations and residual sums are compiled: convolutions are library calls, and small
pieces compile in seconds. A piece is compiled once per shape, whatever the depth of the network.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import ml_collections
import torch
from torch import nn

from models import double_backward
from models.layers import NIN, GroupNorm, ResidualSum, no_autocast
from utils import lookup

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""``config.compute.precision`` -> the type that convolutions and matrix products compute in."""

COMPILED = GroupNorm, ResidualSum

# The layers that autocast computes in bfloat16, with the names of their weights.
CAST = {nn.Conv2d: "weight", nn.Linear: "weight", NIN: "W"}

# The shapes of layers, with and without gradients and tangents, that one network may have.
SHAPES = 1024


def prepare(
    network: nn.Module, compute: ml_collections.ConfigDict, device: torch.device
) -> nn.Module:
    """Move `network` to `device` and let it compute as `compute` (``config.compute``) says.

    Its inputs and outputs stay float32. Two settings are of the whole process. With tf32, CUDA's
    float32 products keep 10 bits of their factors; otherwise they keep all, convolutions too. And
    cuDNN searches the fastest algorithm of each shape, unless deterministic ones were asked for.

    Returns:
        The network.

    Raises:
        UserError: an unknown precision.
    """
    dtype = lookup(AUTOCAST, compute.precision, "config.compute.precision")
    exact = compute.precision != "tf32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    # A job computes in few shapes, many times each: whole batches or microbatches, and once in an
    # epoch, a division or a test split a last one that is smaller, which costs one search more.
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    network.to(device)
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    if compute.compile:
        compile_layers(network)
    if dtype is not None:
        for layer, inner in edges(network):
            result = dtype if inner else torch.float32
            layer.forward = functools.partial(_exactly, layer.forward, device.type, result)
        network.forward = torch.autocast(device.type, dtype)(network.forward)
    return network


def edges(network: nn.Module) -> Iterable[tuple[nn.Module, bool]]:
    """The layers that keep to float32, as the `network` names them; see `NCSNpp.edges`."""
    return network.edges() if hasattr(network, "edges") else ()


def _exactly(forward, device_type, result, x, *rest):
    """``forward(x, *rest)`` in float32 within autocast, as the type `result`."""
    with no_autocast(device_type):
        return forward(x.float(), *rest).to(result)


def freeze(
    network: nn.Module, compute: ml_collections.ConfigDict, device: torch.device
) -> nn.Module:
    """`prepare` a `network` whose weights will not change: in eval mode, without gradients.

    What it computes in bfloat16 has its weights cast once. Autocast, whose numbers these are bit
    for bit, casts what requires no gradient anew in every pass. All else stays float32.

    Returns:
        The network.

    Raises:
        UserError: an unknown precision.
    """
    prepare(network, compute, device).eval().requires_grad_(False)
    dtype = AUTOCAST[compute.precision]
    if dtype is None:
        return network
    exact = {layer for layer, _ in edges(network)}
    for layer in network.modules():
        for kind, name in CAST.items():
            if isinstance(layer, kind) and layer not in exact:
                weight = getattr(layer, name).to(dtype)
                setattr(layer, name, nn.Parameter(weight, requires_grad=False))
    return network


def compile_layers(network: nn.Module) -> None:
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * SHAPES
    kernels = {name: compiled(kernel) for name, kernel in double_backward.KERNELS.items()}
    for layer in network.modules():
        if isinstance(layer, COMPILED):
            layer.forward = compiled(layer.forward)
        if isinstance(layer, double_backward.BatchNorm2d):
            layer.kernels = kernels


def compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Within the context CUDA's float32 products, convolutions too, keep all bits of factors."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
