"""A device that is not the CPU, for machines that have no other.

Its tensors hold CPU memory and say that they lie on ``meta``, the one device that PyTorch lets be
named without a driver. Most operations that mix them with the CPU's fail, as on a GPU, and most
that would make the host wait for a GPU are written down with the line of ours that asked.
"""

import functools
import importlib
import pathlib
import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

ROOT = pathlib.Path(__file__).parent.parent
DEVICE = torch.device("meta")
aten = torch.ops.aten

MOVES = {aten._to_copy.default, aten.copy_.default}
# A GPU's tensor takes indices, and other operations than these scalars, that lie on the CPU.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
JOINING = {aten.cat.default, aten.stack.default}
# Their results' sizes or values are needed on the host.
WAITS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}


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
    tensors = tensors_of((args, kwargs))
    here = any(isinstance(x, Elsewhere) for x in tensors)
    there = here
    if here and function not in MOVES:
        bound = tensors_of((args[0], args[2:])) if function in INDEXING else tensors
        strangers = [x for x in bound if not isinstance(x, Elsewhere)]
        strangers = [x for x in strangers if x.dim() or function in JOINING]
        assert not strangers, f"{function} mixes devices at {caller()}"
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == DEVICE
        kwargs = dict(kwargs, device=torch.device("cpu"))
    if function is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    masks = function in INDEXING and any(x.dtype == torch.bool for x in tensors_of(args[1]))
    upload = function in MOVES and there and not all(isinstance(x, Elsewhere) for x in tensors)
    if upload:
        waits = not kwargs.get("non_blocking")
    else:
        waits = here and (function in WAITS or masks or not there)
    if waits:
        wait(function)
    result = function(*mapped(inner, args), **mapped(inner, kwargs))
    if not there:
        return result
    result = mapped(Elsewhere, result)
    if any(value.alias_info for value in function._schema.returns):
        return return_and_correct_aliasing(function, args, kwargs, result)
    return result


def mapped(function, tree):
    """`tree` with ``function(x)`` for its tensors; PyTorch's own takes most of a small step."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: mapped(function, value) for name, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)([mapped(function, value) for value in tree])
    return tree


def tensors_of(tree):
    found = []
    mapped(found.append, tree)
    return found


def inner(x):
    return x.inner if isinstance(x, Elsewhere) else x


def caller():
    """The innermost line of this repository, tests aside, that is being run."""
    for frame in reversed(traceback.extract_stack()):
        path = pathlib.Path(frame.filename)
        ours = ROOT in path.parents and "site-packages" not in path.parts
        if ours and path.parent.name != "tests":
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
    autocasts = torch.is_autocast_enabled  # which asks no device that it does not know
    torch.is_autocast_enabled = lambda *kind: DEVICE.type not in kind and autocasts(*kind)
    # Counting pretends too, and one pretence within the other ends the process in a convolution.
    Dispatch().__enter__()
