"""A device that is not the CPU, for machines that have no other.

Its tensors hold CPU memory and say that they lie on ``meta``, the one device that PyTorch lets be
named without a driver. An operation that mixes them with the CPU's fails, as on a GPU, and what
would make the host wait for a GPU is written down with the line of this repository that asked.
"""

import functools
import importlib
import pathlib
import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

ROOT = pathlib.Path(__file__).parent.parent
DEVICE = torch.device("meta")
aten = torch.ops.aten

MOVES = {aten._to_copy.default, aten.copy_.default}
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
# A GPU's tensor takes indices that lie on the CPU.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Elsewhere(torch.Tensor):
    """`inner`, a CPU tensor, as one of `DEVICE`."""

    @staticmethod
    def __new__(cls, inner):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            dispatch_device=True,
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return perform(function, args, kwargs or {})

    def item(self):
        wait("item")
        return self.inner.item()

    def tolist(self):
        wait("tolist")
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of another device to NumPy; use .cpu() first")

    __array__ = numpy

    def __bool__(self):
        return bool(self.item())

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __reduce_ex__(self, protocol):
        return self.inner.detach().__reduce_ex__(protocol)


class Generator(torch.Generator):
    device = DEVICE

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return perform(function, args, kwargs or {})


def perform(function, args, kwargs):
    if function is torch.ops.prim.device.default:
        return DEVICE
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = any(isinstance(x, Elsewhere) for x in tensors)
    there = here
    if here and function not in MOVES | INDEXING:
        strangers = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim()]
        assert not strangers, f"{function} mixes devices at {caller()}"
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == DEVICE
        kwargs = dict(kwargs, device=torch.device("cpu"))
    if function is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    if here and (function in WAITS or not there):
        wait(function)
    result = function(*tree_map(inner, args), **tree_map(inner, kwargs))
    if not there:
        return result
    result = tree_map(wrapped, result)
    if any(value.alias_info for value in function._schema.returns):
        return return_and_correct_aliasing(function, args, kwargs, result)
    return result


def inner(x):
    return x.inner if isinstance(x, Elsewhere) else x


def wrapped(x):
    return Elsewhere(x) if isinstance(x, torch.Tensor) else x


def caller():
    """The innermost line of this repository, tests aside, that is being run."""
    for frame in reversed(traceback.extract_stack()):
        path = pathlib.Path(frame.filename)
        if ROOT in path.parents and path.parent.name != "tests":
            return f"{path.relative_to(ROOT)}: {frame.line}"
    return "?"


def wait(what):
    """Write one line to ``waits.txt`` in the working directory."""
    with open("waits.txt", "a") as file:
        print(f"{what} {caller()}", file=file)


def moved(make, data, device=None, **options):
    """`make(data)`, `torch.tensor` or its like, which fill a device's memory unseen otherwise."""
    made = make(data, **options)
    return made if device is None else made.to(device)


def install():
    """Let this process have the device; for `commands.start`."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    importlib.import_module("torch.optim.adam")._device_dtype_check_for_fused = (
        lambda *args, **options: None
    )
    torch.Generator = Generator
    torch.tensor = functools.partial(moved, torch.tensor)
    torch.as_tensor = functools.partial(moved, torch.as_tensor)
    Dispatch().__enter__()
