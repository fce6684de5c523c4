"""Evaluation in several processes, each on its own batches.

Behind ``torchrun`` the batches are dealt out in turn, so that a network sees in every pass what it
would see in one process. Files of a batch each process writes itself. What becomes one file the
first writes, when the others have come so far (`wait`) or have sent it their rows (`collect`);
numbers it computes and prints alone.

The processes are joined by Gloo, on the CPU. Without torchrun nothing here imports PyTorch, which
TF-GAN's environment lacks.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from utils import UserError, is_first, rank_and_size


def own(items: Sequence) -> Sequence:
    """What of a sequence is this process's: dealt out in turn, the first item to the first."""
    rank, size = rank_and_size()
    return items[rank::size]


def wait(**agreed: object) -> None:
    """Return when all processes have come here.

    Raises:
        UserError: they have other values of `agreed`; names the first.
    """
    _, size = rank_and_size()
    if size > 1:
        from distributed import require_agreement

        with _joined():
            require_agreement(agreed, group=None)


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """The first process goes through the context alone; the others follow when it is out."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def collect(arrays: Sequence[np.ndarray], parts: Sequence[slice]) -> None:
    """Bring rows of NumPy `arrays` together in the first process's.

    `parts` are slices of the rows, of which each process has filled its `own`.
    """
    rank, size = rank_and_size()
    if size == 1:
        return

    import torch
    import torch.distributed as dist

    with _joined():
        for number, rows in enumerate(parts):
            owner = number % size
            for array in (each for each in arrays if owner and each.size):
                if rank == 0:
                    dist.recv(torch.from_numpy(array[rows]), owner)
                elif rank == owner:
                    dist.send(torch.from_numpy(array[rows]), 0)


@contextlib.contextmanager
def _joined():
    """Within the context the processes can exchange tensors, from the first time on.

    Raises:
        UserError: one of them has ended meanwhile.
    """
    import torch.distributed as dist

    from distributed import PATIENCE

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        yield
    except RuntimeError:  # Gloo's; it names an address, and nothing that would help
        rank, _ = rank_and_size()
        raise UserError(
            f"Process {rank} waited for another one, which has ended. Look at what that one said, "
            "and start them again: what is written is kept."
        ) from None
