"""Kernel launches, bytes moved and FLOPs of each job on a GPU, counted without one.

    python -m studies.launches

Runs on PyTorch's fake CUDA tensors, which have no numbers. An operation counts as one launch, and
moves the bytes of its inputs and outputs; views and empty tensors are free. Within a compiled
function the operations between two library calls (convolutions, matrix products, attention) count
as one launch, and tensors that only they use are free. These are lower bounds: some operations
launch several kernels, and a compiler may need several for a reduction. Nothing is compiled:
without a driver PyTorch neither differentiates CUDA tensors nor generates code for them.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

from models import resampling
from studies import jobs
from studies.common import print_table

GPU, META = torch.device("cuda"), torch.device("meta")
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


class Launches(TorchDispatchMode):
    """Counts the operations on fake CUDA tensors.

    Attributes:
        launches, bytes: as in the module's docstring.
        calls: of compiled functions, forward and backward.
        flops: by PyTorch's formulas, of convolutions, matrix products and attention.
    """

    def __init__(self):
        super().__init__()
        self.compiled = False  # whether this is within a compiled function
        self.reset()

    def reset(self):
        self.launches = self.bytes = self.calls = self.flops = 0
        self.kernel, self.written = None, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.ops.prim.device.default:
            # Autograd asks for the device; for CUDA tensors it would need a driver's streams.
            return META if args[0].device.type == GPU.type else args[0].device
        if kwargs.get("device") == META:
            kwargs["device"] = GPU
        name = function._overloadpacket.__name__
        if name == "batch_norm_update_stats":  # PyTorch 2.14 has none for fake tensors
            result = [args[0].new_empty(args[0].shape[1]) for _ in range(2)]
        else:
            result = function(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if function.is_view or name in FREE or all(x.device.type != GPU.type for x in tensors):
            return result
        if name == "_to_copy" and _alike(args[0], result):
            return result  # PyTorch copies where devices differ, and this one says META
        library = flop_registry.get(function._overloadpacket)
        if library:
            self.flops += library(*args, **kwargs, out_val=result)
        self.see(tree_leaves((args, kwargs)), tree_leaves(result), self.compiled and not library)
        return result

    def see(self, read, made, fused):
        """Count an operation, which with `fused` joins the kernel of the one before it."""
        if not (fused and self.kernel):
            self.launches += 1
            self.kernel = set()  # of what it has read
        for storage, size in _storages(read):
            maker = self.written.get(storage)
            if maker is self.kernel or storage in self.kernel:
                continue
            self.kernel.add(storage)
            self.bytes += size * (1 if maker is None else 2)  # read, and written to be read
            self.written[storage] = None
        for storage, size in _storages(made):
            if fused:
                self.written[storage] = self.kernel
            else:
                self.bytes += size
        if not fused:
            self.kernel = None

    @contextlib.contextmanager
    def within(self):
        """A call of a compiled function."""
        self.calls += not self.compiled
        before, self.compiled = self.compiled, True
        yield
        self.compiled = before
        if not before:
            self.kernel = None


def _alike(x, y):
    return (x.device, x.dtype, x.stride()) == (y.device, y.dtype, y.stride())


def _storages(tree):
    """Yield each storage of the tensors and its bytes; expanded tensors count once."""
    for x in tree:
        if isinstance(x, torch.Tensor):
            storage = x.untyped_storage()
            yield storage, min(x.numel() * x.element_size(), storage.nbytes())


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Replaces ``torch.compile(function)``: runs it and its gradient within `launches`."""

    launches: Launches
    function: Callable

    def __call__(self, *args, **kwargs):
        owner = getattr(self.function, "__self__", None)
        weights = list(owner.parameters()) if isinstance(owner, torch.nn.Module) else []
        values, spec = tree_flatten((args, kwargs))
        if torch.is_grad_enabled() and not self.launches.compiled:
            return _Gradient.apply(self, spec, len(weights), *weights, *values)
        return self.run(spec, values)

    def run(self, spec, values):
        args, kwargs = tree_unflatten(values, spec)
        with self.launches.within():
            return self.function(*args, **kwargs)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, compiled, spec, count, *values):
        values = [
            x.detach().requires_grad_(x.requires_grad)
            if isinstance(x, torch.Tensor) and place >= count
            else x
            for place, x in enumerate(values)
        ]
        with torch.enable_grad():
            out = compiled.run(spec, values[count:])
        ctx.compiled, ctx.values, ctx.out = compiled, values, out
        return tree_map(torch.Tensor.detach, out)

    @staticmethod
    def backward(ctx, *grad_out):
        pairs = zip(tree_leaves(ctx.out), grad_out)
        outs, grads = zip(*((o, g) for o, g in pairs if o.requires_grad and g is not None))
        needed = [isinstance(x, torch.Tensor) and x.requires_grad for x in ctx.values]
        wanted = list(itertools.compress(ctx.values, needed))
        with ctx.compiled.launches.within():
            found = iter(torch.autograd.grad(outs, wanted, grads, True, allow_unused=True))
        return None, None, None, *(next(found) if need else None for need in needed)


class Autocast(TorchFunctionMode):
    """CUDA's autocast to bfloat16; PyTorch's own ignores tensors whose device is ``meta``."""

    LOWER = "conv2d conv_transpose2d linear matmul __matmul__ bmm mm einsum".split()
    FLOAT32 = "group_norm layer_norm softmax log_softmax sum exp log pow __pow__ norm".split()
    DTYPES = dict.fromkeys(LOWER, torch.bfloat16) | dict.fromkeys(FLOAT32, torch.float32)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        dtype = self.DTYPES.get(getattr(function, "__name__", None))
        if dtype is None or not torch.is_autocast_enabled(GPU.type):
            return function(*args, **kwargs)
        cast = functools.partial(_cast, dtype)
        with torch.autocast(GPU.type, enabled=False):
            return function(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})


def _cast(dtype, x):
    wide = isinstance(x, torch.Tensor) and x.dtype in (torch.float32, torch.bfloat16)
    return x.to(dtype) if wide else x


def _flash_attention(q, k, v):
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _swap(parameter, other):
    parameter.data, parameter.fake_device = other.data, other.fake_device


@contextlib.contextmanager
def pretended_gpu(launches):
    """Within the context tensors are fake, CUDA tensors need no GPU, and `launches` counts."""
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch._C, "_select_conv_backend", lambda *_, **__: torch._C._ConvBackend.Cudnn),
            (torch, "compile", lambda function, **_: Compiled(launches, function)),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.compiler, "is_compiling", lambda: launches.compiled),
            (torch.cuda, "is_bf16_supported", lambda: True),
            (FakeTensor, "is_cuda", property(lambda x: x.device.type == GPU.type)),
            (torch.random, "fork_rng", lambda devices: contextlib.nullcontext()),
            (torch.utils, "swap_tensors", _swap),  # PyTorch's own refuses fake parameters
            (torch.nn.utils.clip_grad, "_has_foreach_support", lambda tensors, device: True),
            (F, "scaled_dot_product_attention", _flash_attention),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        resampling.fir_matrices.cache_clear()
        stack.callback(resampling.fir_matrices.cache_clear)  # it caches fake tensors
        for mode in (FakeTensorMode(), Autocast(), launches):
            stack.enter_context(mode)
        yield


def count(make, bench, way):
    """The `Launches` of the second call of ``make(bench, way)``; `bench` is on `GPU`."""
    launches = Launches()
    with pretended_gpu(launches):
        call = make(bench, way)
        call()  # makes the optimiser's state and cached matrices
        launches.reset()
        call()
    return launches


JOBS = {"score evaluation": jobs.evaluation} | {
    name: functools.partial(jobs.step, objective) for name, objective in jobs.OBJECTIVES.items()
}


def main():
    bench = jobs.published(GPU)
    print(f"CIFAR-10, {bench.batch} images, bfloat16, channels last\n")
    heads = "job", "launches, eager", "GB", "launches, compiled", "GB", "compiled calls", "TFLOP"
    print_table(heads, [])
    for name, make in JOBS.items():
        eager, compiled = (count(make, bench, way) for way in (jobs.EAGER, jobs.COMPILED))
        cells = [f"{x.launches:,} | {x.bytes / 1e9:.4g}" for x in (eager, compiled)]
        cells += [f"{compiled.calls:,}", f"{eager.flops / 1e12:.3g}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    main()
