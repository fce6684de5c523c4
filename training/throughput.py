"""Speed of a training run: images/s, share of the device's matrix rate, peak memory; traces."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import torch

from models import compute
from training.cost import step_of
from training.job import Job
from utils import log, rank_and_size

WARM_UP = 3  # steps before those that are profiled
LINE_SECONDS = 600  # between lines of the log
SIZES = {"cuda": 8192}  # rows of the square matrices whose product takes milliseconds


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 20) -> float:
    """FLOP/s that `device` reaches in products of large square matrices of `dtype`.

    Those of float32 compute in TF32 where convolutions do.
    """
    size = SIZES.get(device.type, 512)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    precision = "high" if compute.has_tf32_convolutions(device) else "highest"
    with compute.matmul_precision(precision):
        for _ in range(3):
            a @ b
        wait_for(device)
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        wait_for(device)
        return repeats * 2 * size**3 / (time.perf_counter() - start)


def wait_for(device: torch.device) -> None:
    """Wait until the work queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Throughput:
    """Speed of a job's training steps between reports, without saving, validation and sampling.

    On CUDA the matrix rate is measured and the FLOPs of a step are counted first, in seconds.
    """

    def __init__(self, job: Job, step: int) -> None:
        self.device, self.batch = job.device, job.config.training.batch_size
        self.flops = self.rate = None
        if self.device.type == "cuda":
            dtype = compute.AUTOCAST[job.config.compute.precision] or torch.float32
            job.model.eval()  # in training, batch norms would wait for the other processes
            try:  # training continues if the count fails
                self.flops = step_of(job, images=2)[0] / rank_and_size()[1]
                self.rate = matrix_rate(self.device, dtype)
            except Exception as error:
                log.warning("The share of the matrix rate is not reported: %s", error)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.step, self.time, self.next_line = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time within the context is not counted."""
        start = time.perf_counter()
        yield
        self.time += time.perf_counter() - start

    def report(self, step: int) -> dict[str, float]:
        """Since the last report: images/s of all processes, and on CUDA this GPU's share and GiB.

        Every `LINE_SECONDS` they go to the log.
        """
        now = time.perf_counter()
        speed = (step - self.step) * self.batch / (now - self.time)
        self.step, self.time = step, now
        values = {"images_per_s": speed}
        if self.rate is not None:
            values["share_of_matrix_rate"] = speed * self.flops / self.rate
        if self.device.type == "cuda":
            values["peak_GiB"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        if now >= self.next_line:
            self.next_line = now + LINE_SECONDS
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            log.info("Step %d, speed: %s.", step, text)
        return values


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
