"""FLOPs and peak memory of a call and of a training step, counted on fake tensors.

A call on PyTorch's fake tensors, which have no numbers, runs through the same operations in
seconds, whatever the size. Not counted are cuDNN's workspaces, a GPU's context and the gaps of its
allocator.
"""

import weakref
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from models import resampling
from training.job import Job


class Cost(TorchDispatchMode):
    """FLOPs by PyTorch's formulas, and bytes of the fake tensors that are made: `now`, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self.alive = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._efficientzerotensor.default:  # made, it is on no device
            function = torch.ops.aten.zeros.default
        result = function(*args, **kwargs)
        if formula := flop_registry.get(getattr(function, "_overloadpacket", None)):
            self.flops += formula(*args, **kwargs, out_val=result)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        real = not all(isinstance(x, FakeTensor) for x in tensors)
        # A view of a real tensor takes no new memory, though its fake storage is new.
        view = real and any(value.alias_info for value in function._schema.returns)
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._follow(tensor.untyped_storage(), counts=not view)
        return result

    def _follow(self, storage, counts):
        key, size = storage._cdata, storage.nbytes() * counts
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self.alive.remove(key)
        self.now -= size


def cost_of(call: Callable[[], object]) -> Cost:
    """The `Cost` of ``call()``, whose new tensors are fake; real ones are read as fake ones."""
    try:
        # Compiled code would be compiled for fake tensors.
        with (
            torch.compiler.set_stance("force_eager"),
            FakeTensorMode(allow_non_fake_inputs=True),
            Cost() as cost,
        ):
            call()
    finally:
        resampling.fir_matrices.cache_clear()  # it may have kept fake ones
    return cost


def weights_of(network: torch.nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def step_of(job: Job, images: int) -> tuple[float, float, float]:
    """FLOPs of an image in a training step; bytes of the weights and of a step, for an image.

    The model's mode is not changed; in training mode, batch norms count the batch.
    """
    parameters = [p for p in job.model.parameters() if p.requires_grad]

    def gradient():
        x = torch.rand((images, *job.domain.shape), device=job.device)
        labels = torch.zeros(images, dtype=torch.long, device=job.device)
        loss, _ = job.objective(x, labels, job.objective.draw(x))
        torch.autograd.grad(loss, parameters, allow_unused=True)

    cost = cost_of(gradient)
    # The averages and Adam's two moments beside the weights; the gradients are in the peak.
    fixed = weights_of(job.model) + 3 * sum(p.nbytes for p in parameters)
    return cost.flops / images, fixed, cost.peak / images
