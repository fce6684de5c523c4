"""Distributes work among the ranks of torchrun, by Gloo on the CPU.

Batches are assigned to the ranks round-robin, so that they are the batches of a single process.
Only rank 0 prints, and writes files that several ranks contribute to.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist

from distributed import PATIENCE, require_agreement
from utils import UserError, is_first, rank_and_size


def local_shard(items: Sequence) -> Sequence:
    """The items of this rank: every `size`-th."""
    rank, size = rank_and_size()
    return items[rank::size]


def barrier(**agreed: object) -> None:
    """Wait for all ranks.

    Raises:
        UserError: a value of `agreed` differs between them; names the first.
    """
    _, size = rank_and_size()
    if size > 1:
        with _process_group():
            require_agreement(agreed, group=None)


@contextlib.contextmanager
def rank0_first() -> Iterator[None]:
    """Rank 0 runs the body first; the other ranks wait."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def gather(value: object) -> list[Any]:
    """The picklable `value` of every rank, in their order, on rank 0; an empty list elsewhere."""
    rank, size = rank_and_size()
    if size == 1:
        return [value]

    with _process_group():
        values = [None] * size if rank == 0 else None
        dist.gather_object(value, values)
    return values or []


@contextlib.contextmanager
def _process_group():
    """Initialise the process group at first use; raise a UserError if a rank has ended."""
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        yield
    except RuntimeError:  # Gloo's, which names only an address
        rank, _ = rank_and_size()
        raise UserError(
            f"Process {rank} waited for another one, which has ended. Read that one's message, and "
            "start them again: finished files are kept."
        ) from None
