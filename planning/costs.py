"""FLOPs of calls that are not made, and the lines that a dry run prints."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping

import ml_collections
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models.memory import pretence, readable
from utils import flatten

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Flops(TorchDispatchMode):
    """Adds up FLOPs by PyTorch's formulas.

    Its own FlopCounterMode also follows modules, by hooks that know no `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = flop_registry.get(getattr(function, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of ``call()``, two for a product that is added; none of its tensors gets numbers.

    Counted are convolutions, matrix products and attention, which is nearly all of a network.
    """
    with pretence(), Flops() as counter:
        call()
    return counter.total


def readable_flops(flops: float) -> str:
    """FLOPs in words."""
    for size, prefix in PREFIXES:
        if flops >= size:
            return f"{flops / size:.3g} {prefix}FLOP"
    return f"{flops:.3g} FLOP"


@dataclasses.dataclass(frozen=True)
class Files:
    """Files that a command writes: a path or a pattern, how many, and bytes of each, if known."""

    path: pathlib.Path
    count: int = 1
    size: int | None = None


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def print_plan(
    config: ml_collections.ConfigDict, facts: Mapping[str, str], files: Iterable[Files]
) -> None:
    """Print a configuration, `facts` (name -> text) and the `files` that would be written."""
    print("Configuration")
    for name, value in sorted(flatten(config.to_dict()).items()):
        print(f"  config.{name} = {value!r}")
    print("Plan")
    for name, text in facts.items():
        print(f"  {name}: {text}")
    print("Files to be written")
    for each in files:
        count = f", {each.count} files" if each.count > 1 else ""
        size = f", {readable(each.count * each.size)}" if each.size else ""
        print(f"  {each.path}{count}{size}")
    print("This was a dry run: nothing was done, nothing was written.")
