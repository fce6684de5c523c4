"""Errors for the user, random streams, the log and the device."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from logging.handlers import MemoryHandler
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch is optional here
    import ml_collections
    import torch

VERSION = "1.1.0"

log = logging.getLogger("dlsm_qc")


class UserError(Exception):
    """A mistake of the user; its message says what was found, what was expected and what to do."""


def lookup(table: Mapping, name: object, field: str) -> Any:
    """Return ``table[name]``.

    Raises:
        UserError: `name` is not in the table; names the config `field` and the choices.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        choices = ", ".join(sorted(map(str, table)))
        raise UserError(f"{field} is {name!r}; expected one of: {choices}.") from None


def take(model: "ml_collections.ConfigDict", names: Iterable[str]) -> dict[str, Any]:
    """The fields `names` of ``config.model``, a dict.

    Raises:
        UserError: one is missing; names it.
    """
    for name in names:
        if name not in model:
            raise UserError(
                f"config.model.{name} is missing, which the model {model.name} needs; take a "
                "configuration that was made for this model."
            )
    return {name: model[name] for name in names}


def require_positive(value: object, field: str) -> int:
    """Return `value` if it is an integer above zero, or raise a UserError that names `field`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{field} is {value!r}; expected a whole number of at least 1.")
    return value


def stream_key(purpose: str, *numbers: int) -> int:
    """128-bit key of a random stream: a hash of its purpose and `numbers`, the run's seed first."""
    text = json.dumps([purpose, *map(int, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def random_stream(purpose: str, *numbers: int) -> np.random.Generator:
    """The random stream of `stream_key`: Philox, which is counter-based, on the host."""
    return np.random.Generator(np.random.Philox(key=stream_key(purpose, *numbers)))


def device_seed(purpose: str, *numbers: int) -> int:
    """Seed of a stream for a generator on a GPU: CUDA's are Philox, keyed by all 64 bits of it."""
    return stream_key(purpose, *numbers) % 2**64


def seed_default_generators(purpose: str, *numbers: int) -> None:
    """Seed PyTorch's default generators, on the CPU and on all GPUs.

    The CPU's is MT19937, of whose seed `torch.manual_seed` keeps 32 bits. Its state of 624 words is
    therefore drawn from `random_stream`.
    """
    import torch

    if torch.accelerator.is_available():
        torch.manual_seed(device_seed(purpose, *numbers))
    state = torch.Generator().get_state()
    words = random_stream(purpose, *numbers).bit_generator.random_raw(312).view(np.uint32)
    state.numpy().view(np.uint64)[3:627] = words  # PyTorch stores each word in 64 bits
    torch.set_rng_state(state)


def shares(total: int, parts: int) -> list[int]:
    """Sizes of `parts` shares that add up to `total` and differ by one at the most."""
    share, rest = divmod(total, parts)
    return [share + (i < rest) for i in range(parts)]


def rank_and_size() -> tuple[int, int]:
    """The rank of this process under torchrun, and the number of processes; else 0, 1."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is rank 0, which logs and writes."""
    return rank_and_size()[0] == 0


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"section.field": value}`` of a nested dict, such as a configuration."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields.update(flatten(value, f"{prefix}{name}."))
        else:
            fields[prefix + name] = value
    return fields


# ---------------------------------------------------------------- the log and the device


def log_to(path: str | os.PathLike | None = None) -> None:
    """Send the log to standard output and, with `path`, to that file too (appended).

    The file also gets what was logged before. Rank 0 logs; the other ranks only warn, on standard
    output.
    """
    handlers = [logging.StreamHandler(sys.stdout)]
    if path is None:
        handlers.append(MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1))
    elif is_first():
        handlers.append(logging.FileHandler(path))
        for handler in log.handlers:
            if isinstance(handler, MemoryHandler):
                handler.setTarget(handlers[-1])  # it is flushed when it is closed
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for handler in log.handlers:
        handler.close()
    log.handlers = handlers
    logging.raiseExceptions = False  # on a full disk the next file fails, not the log
    log.setLevel(logging.INFO if is_first() else logging.WARNING)
    log.propagate = False


def get_device(name: str) -> "torch.device":
    """The torch device of ``config.device``; ``auto`` is CUDA if available, else the CPU.

    Each process of torchrun on a machine gets one GPU, PyTorch's current one from here on.

    Raises:
        UserError: the name is no device, or CUDA is asked for and absent.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"config.device is {name!r}; expected auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"config.device is {name!r}, but this machine shows no CUDA GPU to PyTorch; "
            "use --config.device=cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"There is no {device}: this machine shows {torch.cuda.device_count()} CUDA GPUs to "
            "PyTorch. Start at most one process for each."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
