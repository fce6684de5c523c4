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

    Its inputs and outputs stay float32. Two settings apply to the whole process: the precision of
    CUDA's float32 products (TF32 or full), and cuDNN's search for the fastest algorithm of each
    shape, which is off if deterministic algorithms were chosen.

    Returns:
        The network.

    Raises:
        UserError: an unknown precision.
    """
    dtype = lookup(AUTOCAST, compute.precision, "config.compute.precision")
    exact = compute.precision != "tf32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
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
    """The layers of a network that compute in float32 whatever the precision: `NCSNpp.edges`."""
    return network.edges() if hasattr(network, "edges") else ()


def _exactly(forward, device_type, result, x, *rest):
    """``forward(x, *rest)`` in float32 within autocast, as the type `result`."""
    with no_autocast(device_type):
        return forward(x.float(), *rest).to(result)


def freeze(
    network: nn.Module, compute: ml_collections.ConfigDict, device: torch.device
) -> nn.Module:
    """`prepare` a `network` whose weights will not change: in eval mode, without gradients.

    Weights of layers that compute in bfloat16 are cast once; autocast would cast them in every
    pass, with the same results bit for bit. All other weights stay float32.

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
    """Compile the network's norms with their activations, its residual sums, and batch norms."""
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * SHAPES
    # Jᵀv of several v goes backward through one graph several times.
    torch._functorch.config.donated_buffer = False
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
    """Within the context CUDA's float32 products and convolutions do not use TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
