"""How networks compute, as ``config.compute`` says: precision, memory format, compiled blocks.

A block is compiled once per shape and serves all blocks of that shape, so that a compilation costs
as much for the published depth as for one block of each shape.
"""

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.layers import AttnBlock, ResnetBlock
from models.resnet import BasicBlock
from utils import lookup

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""``config.compute.precision`` -> the type that convolutions and matrix products compute in."""

COMPILED = {ResnetBlock: "transform", AttnBlock: "forward", BasicBlock: "forward"}

# The shapes of blocks, with and without gradients and tangents, that one network may have.
SHAPES = 1024


def prepare(network, compute, device):
    """Move `network` to `device` and let it compute as `compute` (``config.compute``) says.

    Its inputs and outputs stay float32. tf32 holds for the whole process: with it, CUDA's float32
    products keep 10 bits of their factors; with fp32 they keep all, convolutions too.

    Returns:
        The network.

    Raises:
        UserError: an unknown precision.
    """
    dtype = lookup(AUTOCAST, compute.precision, "config.compute.precision")
    exact = compute.precision == "fp32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    network.to(device)
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    if compute.compile:
        compile_blocks(network)
    if dtype is not None:
        network.forward = torch.autocast(device.type, dtype)(network.forward)
    return network


def compile_blocks(network):
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * SHAPES
    for block in network.modules():
        name = COMPILED.get(type(block))
        if name is not None:
            setattr(block, name, torch.compile(getattr(block, name), dynamic=False))


@contextlib.contextmanager
def plain():
    """Within the context networks are plain operations: no compiled code, no fused attention.

    What is differentiated a second time, or for several cotangents at once, has to be.
    """
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        yield
