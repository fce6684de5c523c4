"""How much memory a call takes, counted without taking it.

PyTorch's fake tensors have shapes, types and a device, but no numbers: a call on them runs through
the same operations in seconds, whatever the size, and `count` follows the storages that would live.
It does not see what a library takes within an operation (cuDNN's workspaces), nor what a GPU's
context and the gaps of its allocator cost.
"""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import resampling
from utils import log, rank_and_size

MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a call: `held` by tensors that were there before it, and its own at their `peak`."""

    held: int
    peak: int


class LiveStorages(TorchDispatchMode):
    """Adds up the storages of fake tensors that live, and of the real ones that are used."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.held = 0
        self.known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.prim.device.default:  # asked often, and nothing is made
            return args[0].fake_device
        result = function(*args, **(kwargs or {}))
        real = [x for x in tensors_of((args, kwargs)) if not isinstance(x, FakeTensor)]
        for x in real:
            self.hold(x.untyped_storage())
        # What a real tensor is viewed through is the storage of its fake stand-in: nothing new.
        view = real and any(value.alias_info for value in function._schema.returns)
        for x in tensors_of(result):
            storage = x.untyped_storage()
            self.follow(storage, 0 if view else storage.nbytes())
        return result

    def hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.held += storage.nbytes()
            self.known[storage._cdata] = storage

    def follow(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self.known:
            self.now += size
            self.peak = max(self.peak, self.now)
            self.known[key] = weakref.ref(storage, lambda _: self.forget(key, size))

    def forget(self, key: int, size: int) -> None:
        self.now -= size
        del self.known[key]


def tensors_of(tree: object) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@contextlib.contextmanager
def pretence() -> Iterator[None]:
    """Within the context new tensors are fake, and real ones are read as if they were."""
    try:
        # Compiled code would be compiled for fake tensors.
        with torch.compiler.set_stance("force_eager"), FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        resampling.fir_matrix.cache_clear()  # it may have kept fake ones


def count(call: Callable[[], object]) -> Memory:
    """The `Memory` of ``call()``, none of whose tensors gets numbers; nothing real is changed."""
    live = LiveStorages()
    with pretence(), live:
        result = call()
        del result
    return Memory(live.held, live.peak)


# ---------------------------------------------------------------- a training step

FEW_WEIGHTS = 10**6  # a network that has no more fits anywhere, and counting takes seconds


@dataclasses.dataclass(frozen=True)
class Step:
    """Bytes that a training step keeps: `fixed`, and `per_image` of the `images` at a time."""

    fixed: int
    per_image: float
    images: int

    @property
    def total(self) -> float:
        return self.fixed + self.per_image * self.images

    def images_within(self, total: float) -> int:
        """How many images at a time `total` bytes hold; 0: not even one."""
        return max(0, int((total - self.fixed) / self.per_image))


def count_step(job: Any, images: int, processes: int = 1) -> Step:
    """The `Step` of a training job of ``run_lib.train`` that takes `images` images at a time.

    What an objective keeps for its backward pass; within that pass it is some per cent more.

    Args:
        processes: how many train together; DistributedDataParallel copies the gradients.
    """
    job.model.train()
    with kept_buffers(job.model):
        counted = count(functools.partial(loss_of, job, images))
    weights = sum(p.numel() * p.element_size() for p in job.model.parameters() if p.requires_grad)
    copies = 4 + (processes > 1)  # gradients, averages, Adam's two moments
    return Step(counted.held + copies * weights, counted.peak / images, images)


def loss_of(job: Any, images: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a training job's objective returns for made-up data, `images` of them."""
    x = torch.rand((images, *job.domain.shape), device=job.device)
    labels = torch.zeros(images, dtype=torch.long, device=job.device)
    return job.objective(x, labels, job.objective.draw(x))


@contextlib.contextmanager
def kept_buffers(network: torch.nn.Module) -> Iterator[None]:
    """Behind the context the buffers are as before it."""
    # A counter to which nothing fake is added does count.
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        torch._foreach_copy_(list(network.buffers()), buffers)


def report_step(job: Any, training: ml_collections.ConfigDict, whole_batches: bool) -> None:
    """Log what a step of ``config.training`` will keep; warn if the GPU has less.

    No training fails for it: where it cannot be counted, the log says so.

    Args:
        whole_batches: whether the network cannot take a batch in parts.
    """
    if sum(p.numel() for p in job.model.parameters()) <= FEW_WEIGHTS:
        return
    _, processes = rank_and_size()
    share = training.batch_size // processes
    images = min(training.microbatch or share, share)
    try:
        step = count_step(job, images, processes)
    except Exception as error:
        log.info("What a step keeps could not be counted (%s).", type(error).__name__)
        return
    log.info(
        "A step keeps about %s: %s for weights, gradients, averages and moments, and %s for each "
        "of %d images.",
        readable(step.total),
        readable(step.fixed),
        readable(step.per_image),
        images,
    )
    if job.device.type == "cuda":
        total = torch.cuda.get_device_properties(job.device).total_memory
        if step.total > total:
            log.warning("%s", advice(step, total, whole_batches))


def advice(step: Step, total: int, whole_batches: bool) -> str:
    """What to do about a `step` that does not fit a GPU of `total` bytes, a sentence."""
    # A tenth for what is not counted.
    fits = step.images_within(0.9 * total)
    text = f"This GPU has {readable(total)}, less than a step keeps"
    if fits and whole_batches:
        return f"{text}: {fits} images for each process would fit; start more with torchrun."
    if fits:
        return f"{text}: --config.training.microbatch={fits} would fit."
    return f"{text} of a single image."


def readable(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / MIB:.3g} MiB"
