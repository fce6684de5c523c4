"""Computation of networks by ``config.compute``: precision, memory format, compilation.

Residual and attention blocks are compiled whole for passes without tangents, one graph for all
blocks of a shape. Where a training step carries tangents (`jvp`), norms, activations and residual
sums are compiled instead: a compiled block computes the gradients of its weights even where only
the input's is asked for, as in Jᵀv.
"""

import contextlib
import functools
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator

import ml_collections
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from models import double_backward, resampling
from models.layers import NIN, Block, GroupNorm, ResidualSum, ResnetBlock, no_autocast
from utils import log, lookup

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""``config.compute.precision`` -> the type that convolutions and matrix products compute in."""

COMPILED = GroupNorm, ResidualSum

# The layers that autocast computes in bfloat16, with the names of their parameters.
CAST = {nn.Conv2d: ("weight", "bias"), nn.Linear: ("weight", "bias"), NIN: ("W", "b")}

# The shapes of layers, with and without gradients and tangents, that one network may have.
SHAPES = 1024


def prepare(
    network: nn.Module,
    compute: ml_collections.ConfigDict,
    device: torch.device,
    tangents: bool = False,
) -> nn.Module:
    """Move `network` to `device` and apply the settings `compute` (``config.compute``).

    Its inputs and outputs stay float32. In bfloat16 each pass casts the weights and biases of
    `low_precision` at once; autocast, with equal results, would cast them one by one. Two settings
    apply to the whole process: the precision of CUDA's float32 matrix products, and cuDNN's search
    for the fastest algorithm of each shape, which is off if deterministic algorithms were chosen.
    Whether cuDNN's float32 convolutions use TF32 stays at PyTorch's default (they do), see
    `strict_float32`.

    Args:
        tangents: whether training carries tangents; then it is compiled by default on CUDA.

    Returns:
        The network.

    Raises:
        UserError: an unknown precision.
    """
    _set_up(network, compute, device, tangents)
    dtype = AUTOCAST[compute.precision]
    if dtype is not None and (places := low_precision(network)):
        network.forward = functools.partial(_with_cast, network.forward, places, dtype)
    return network


def _set_up(network, compute, device, tangents):
    """`prepare` without the cast of parameters."""
    dtype = lookup(AUTOCAST, compute.precision, "config.compute.precision")
    torch.set_float32_matmul_precision("high" if compute.precision == "tf32" else "highest")
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    tangents = tangents and getattr(network, "carries_tangents", False)
    compiled = is_compiled(compute, device, tangents)
    log.info("%s computes in %s.", type(network).__name__, in_words(compute, device, compiled))
    network.to(device)
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    if compiled:
        compile_layers(network, blocks=not tangents)
    if dtype is not None:
        for layer, inner in edges(network):
            result = dtype if inner else torch.float32
            layer.forward = functools.partial(_exactly, layer.forward, device.type, result)
        network.forward = torch.autocast(device.type, dtype)(network.forward)


def is_compiled(compute: ml_collections.ConfigDict, device: torch.device, tangents: bool) -> bool:
    """``config.compute.compile``; where it is not set, whether tangents are carried on CUDA.

    Without compilation a norm with tangents is a long chain of memory-bound kernels.
    """
    if compute.compile is not None or not (device.type == "cuda" and tangents):
        return bool(compute.compile)
    if has_compiler():
        return True
    log.warning(
        "There is no C compiler or no Python.h, which torch.compile needs on CUDA: training is not "
        "compiled, and slower. Install gcc and Python's headers (python3-dev)."
    )
    return False


def has_compiler() -> bool:
    """Whether there are a C compiler and Python's headers, with which Triton begins."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and os.path.exists(f"{sysconfig.get_path('include')}/Python.h")


def in_words(compute: ml_collections.ConfigDict, device: torch.device, compiled: bool) -> str:
    """The precision, the memory format and whether layers are compiled, for the log."""
    tf32 = compute.precision == "fp32" and has_tf32_convolutions(device)
    words = [compute.precision + " with TF32 convolutions" * tf32]
    words += ["channels last"] * compute.channels_last + ["compiled"] * compiled
    return ", ".join(words)


def has_tf32_convolutions(device: torch.device) -> bool:
    """Whether float32 convolutions on `device` use TF32."""
    return device.type == "cuda" and torch.backends.cudnn.allow_tf32


def edges(network: nn.Module) -> Iterable[tuple[nn.Module, bool]]:
    """The layers of a network that compute in float32 whatever the precision: `NCSNpp.edges`."""
    return network.edges() if hasattr(network, "edges") else ()


def _exactly(forward, device_type, result, x, *rest):
    """``forward(x, *rest)``, computed in float32 within autocast and returned as type `result`."""
    with no_autocast(device_type):
        return forward(x.float(), *rest).to(result)


def low_precision(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Layers and names of the parameters that autocast would cast."""
    exact = {layer for layer, _ in edges(network)}
    # A block adds this bias to its noise embedding in float32.
    summed = {block.Conv_0.bias for block in network.modules() if isinstance(block, ResnetBlock)}
    return [
        (layer, name)
        for layer in network.modules()
        for kind in CAST
        if isinstance(layer, kind) and layer not in exact
        for name in CAST[kind]
        if getattr(layer, name) is not None and getattr(layer, name) not in summed
    ]


def _with_cast(forward, places, dtype, *args, **options):
    """``forward(*args, **options)``, the parameters at `places` (layer, name) being of `dtype`."""
    parameters = [layer._parameters[name] for layer, name in places]
    try:
        for (layer, name), cast in zip(places, Cast.apply(dtype, *parameters)):
            layer._parameters[name] = cast
        return forward(*args, **options)
    finally:
        for (layer, name), parameter in zip(places, parameters):
            layer._parameters[name] = parameter


class Cast(torch.autograd.Function):
    """Cast tensors to another type, and their gradients back, by one launch for all tensors."""

    generate_vmap_rule = True  # `jacobian.value_and_jvp` maps over vectors, not parameters

    @staticmethod
    def forward(dtype, *tensors):
        return tuple(_cast(tensors, dtype))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.dtype = inputs[1].dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        wide = iter(_cast([grad for grad in grads if grad is not None], ctx.dtype))
        return None, *(grad if grad is None else next(wide) for grad in grads)


def _cast(tensors, dtype):
    cast = [torch.empty_like(x, dtype=dtype) for x in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast


def freeze(
    network: nn.Module, compute: ml_collections.ConfigDict, device: torch.device
) -> nn.Module:
    """`prepare` a `network` whose weights will not change: in eval mode, without gradients.

    The parameters of `low_precision` are cast once, with the same results bit for bit. All others
    stay float32.

    Returns:
        The network.

    Raises:
        UserError: an unknown precision.
    """
    _set_up(network.eval().requires_grad_(False), compute, device, tangents=False)
    if dtype := AUTOCAST[compute.precision]:
        for layer, name in low_precision(network):
            cast = getattr(layer, name).to(dtype)
            setattr(layer, name, nn.Parameter(cast, requires_grad=False))
    return network


def compile_layers(network: nn.Module, blocks: bool = True) -> None:
    """Compile norms with their activations, residual sums and batch norms, and whole `blocks`."""
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * SHAPES
    # Jᵀv of several v backpropagates through one graph several times.
    torch._functorch.config.donated_buffer = False
    # Compiled code would ignore the cache and build the matrices in each call, on the CPU.
    torch.compiler.assume_constant_result(resampling.fir_matrices.__wrapped__)
    kernels = {name: compiled(kernel) for name, kernel in double_backward.KERNELS.items()}
    for layer in network.modules():
        if isinstance(layer, COMPILED):
            layer.forward = compiled(layer.forward)
        if isinstance(layer, Block) and blocks:
            layer.compiled_values = compiled(layer.rows)
        if isinstance(layer, double_backward.BatchNorm2d):
            layer.kernels = kernels


def compiled(function: Callable) -> Callable:
    """`function`, compiled; feature maps keep their memory format."""
    return torch.compile(function, dynamic=False, options={"layout_optimization": False})


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Within the context float32 matrix products have the precision `name`, as PyTorch calls it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Within the context CUDA's float32 products and convolutions do not use TF32."""
    cudnn = torch.backends.cudnn
    others = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with matmul_precision("highest"), cudnn.flags(enabled=True, allow_tf32=False, **others):
        yield


def strict_float32(compute: ml_collections.ConfigDict) -> contextlib.AbstractContextManager:
    """A context in which ``config.compute.precision`` fp32 means `exact_products`.

    It is for likelihoods and asymmetries, which are small differences of large numbers.
    """
    return exact_products() if compute.precision == "fp32" else contextlib.nullcontext()
