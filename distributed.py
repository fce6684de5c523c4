"""Training in several processes, each on a shard of every batch.

``torchrun --nproc_per_node=N main.py …`` starts the processes, on one or several machines. Each
process draws the whole batch with its random numbers and keeps its own rows, so the draws do not
depend on the number of processes. DistributedDataParallel averages the gradients, by NCCL or Gloo;
batch norms use the statistics of all rows (`mean`). Rank 0 writes files and logs.
"""

import contextlib
import dataclasses
import datetime
import sys
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError, rank_and_size

# The time that processes wait for validation and samples of rank 0. If one dies, torchrun ends all.
PATIENCE = datetime.timedelta(days=1)


# A function of images, labels and random draws to a loss and values to report.
Objective = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]


class ObjectiveModule(nn.Module):
    """An objective and its model as one module, as DistributedDataParallel needs."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, *batch: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.objective(*batch)


@dataclasses.dataclass(frozen=True)
class World:
    """The processes of a training run.

    Attributes:
        objective: of images, labels and draws; its backward pass averages the gradients.
        rank, size: the number of this process, and the number of processes.
        waiting: the process group for synchronisation on the CPU.
    """

    objective: Objective
    rank: int = 0
    size: int = 1
    waiting: dist.ProcessGroup | None = None

    def rows(self, batch_size: int) -> slice:
        """The slice of this process's rows in a batch."""
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def largest(self, number: int) -> int:
        """The maximum of an integer over the processes, which must all call this."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self.waiting)
        return int(largest)

    def means(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A dict of scalar tensors, each averaged over the processes."""
        if self.size == 1:
            return values
        return dict(zip(values, mean(torch.stack(list(values.values())))))


@contextlib.contextmanager
def join(
    model: nn.Module, objective: Objective, device: torch.device, agreed: dict[str, object]
) -> Iterator[World]:
    """Within the context the processes train `model` together; yields their `World`.

    Raises:
        UserError: a value of the dict `agreed` differs between the processes; names the first.
    """
    rank, size = rank_and_size()
    if size == 1:
        yield World(objective)
        return
    gpu = device if device.type == "cuda" else None
    dist.init_process_group("gloo" if gpu is None else "nccl", device_id=gpu)
    try:
        waiting = dist.new_group(backend="gloo", timeout=PATIENCE)
        require_agreement(agreed, waiting)
        step = DistributedDataParallel(
            ObjectiveModule(model, objective),
            device_ids=None if gpu is None else [gpu],
            # Keeps the order of gradient sums equal in all steps (otherwise the first differs), so
            # that a continued run is bitwise equal with three processes too.
            find_unused_parameters=True,
        )
        yield World(step, rank, size, waiting)
    finally:
        # NCCL's destruction waits for all ranks, which may wait for this one; at exit NCCL aborts.
        if gpu is None or sys.exc_info()[0] in (None, SystemExit):
            dist.destroy_process_group()


def require_agreement(agreed: dict[str, object], group: dist.ProcessGroup) -> None:
    """Raise a UserError if a value of the dict `agreed` differs between the processes."""
    every = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, agreed, group)
    for rank, other in enumerate(every):
        if changed := [name for name in agreed if other.get(name) != every[0].get(name)]:
            raise UserError(
                f"Process {rank} differs from process 0 in {', '.join(changed)}. Start all with "
                "one command, on machines that share the workdir."
            )


def size() -> int:
    """How many processes are training together; 1 outside of `join`."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


def mean(x: torch.Tensor) -> torch.Tensor:
    """A tensor's mean over the processes, differentiable in each; with one process, `x` itself."""
    return _Sum.apply(x) / size() if size() > 1 else x


def accumulating(objective: Objective) -> contextlib.AbstractContextManager:
    """A context in which backward passes add to this process's gradients without averaging."""
    if isinstance(objective, DistributedDataParallel):
        return objective.no_sync()
    return contextlib.nullcontext()
