"""Speed of a training run: images/s, share of the device's matrix rate, peak memory; traces."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from models import compute, resampling
from training.job import Job
from utils import rank_and_size

WARM_UP = 3  # steps before those that are profiled
SIZES = {"cuda": 8192}  # rows of the square matrices whose product takes milliseconds


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 20) -> float:
    """FLOP/s that `device` reaches in products of large square matrices of `dtype`."""
    size = SIZES.get(device.type, 512)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    for _ in range(3):
        a @ b
    wait_for(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    wait_for(device)
    return repeats * 2 * size**3 / (time.perf_counter() - start)


def wait_for(device: torch.device) -> None:
    """Until what the host has asked of `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of_an_image(job: Job, images: int = 2) -> float:
    """FLOPs of a training step for each image, counted on fake tensors by PyTorch's formulas."""
    parameters = [p for p in job.model.parameters() if p.requires_grad]
    try:
        with (
            torch.compiler.set_stance("force_eager"),
            FakeTensorMode(allow_non_fake_inputs=True),
            FlopCounterMode(display=False) as counter,
        ):
            x = torch.rand((images, *job.domain.shape), device=job.device)
            labels = torch.zeros(images, dtype=torch.long, device=job.device)
            loss, _ = job.objective(x, labels, job.objective.draw(x))
            torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        resampling.fir_matrix.cache_clear()  # it may have kept fake ones
    return counter.get_total_flops() / images


class Throughput:
    """How fast a job trains, measured between its reports.

    On CUDA it begins with a measurement of the matrix rate and a count of the FLOPs of a step, some
    seconds; elsewhere the images/s are all that it reports.
    """

    def __init__(self, job: Job, step: int) -> None:
        self.device, self.batch = job.device, job.config.training.batch_size
        self.flops = self.rate = None
        if self.device.type == "cuda":
            dtype = compute.AUTOCAST[job.config.compute.precision] or torch.float32
            self.rate = matrix_rate(self.device, dtype)
            self.flops = flops_of_an_image(job) / rank_and_size()[1]
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leave what was done since the last report out of the next one."""
        self.step, self.time = step, time.perf_counter()

    def report(self, step: int) -> dict[str, float]:
        """Since the last report: images/s of all processes; on CUDA also this GPU's share, GiB."""
        seconds = time.perf_counter() - self.time
        speed = (step - self.step) * self.batch / seconds
        self.restart(step)
        if self.rate is None:
            return {"images_per_s": speed}
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        share = speed * self.flops / self.rate
        return {"images_per_s": speed, "share_of_matrix_rate": share, "peak_GiB": peak}


@contextlib.contextmanager
def trace(steps: int | None, directory: pathlib.Path) -> Iterator[torch.profiler.profile | None]:
    """A profiler of `steps` training steps, whose ``step()`` ends each; None: there is none.

    Writes a trace, ``*.pt.trace.json``, that TensorBoard's profiler and Perfetto open.
    """
    if not steps:
        yield None
        return
    schedule = torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    handler = torch.profiler.tensorboard_trace_handler(str(directory))
    with torch.profiler.profile(schedule=schedule, on_trace_ready=handler) as profiler:
        yield profiler
