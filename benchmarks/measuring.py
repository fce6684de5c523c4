"""Times, peaks of memory, and what a machine could do at best.

Times are medians of RUNS runs in turns, after a warm-up in which compilations fall. Memory is the
peak above what was in use before (of the process on a CPU, of PyTorch's allocator on a GPU).
"""

import ctypes
import dataclasses
import functools
import gc
import pathlib
import platform
import re
import statistics
import time

import torch

RUNS = 5


@dataclasses.dataclass(frozen=True)
class Measurement:
    seconds: float
    gigabytes: float


class Meter:
    """Times calls and reads their peak memory on a device."""

    def __init__(self, device):
        self.device = device

    def synchronise(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, reset=False):
        """Bytes at the peak since the last reset."""
        if self.device.type == "cuda":
            if reset:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        if reset:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])

    def memory(self, call):
        """Gigabytes at the peak of a call, above what was in use before."""
        self.synchronise()
        before = self.peak(reset=True)
        call()
        self.synchronise()
        return (self.peak() - before) / 1e9

    def seconds(self, call):
        self.synchronise()
        start = time.perf_counter()
        call()
        self.synchronise()
        return time.perf_counter() - start

    def __call__(self, *calls):
        """A `Measurement` of each call; they take turns, so that all see the same machine."""
        for call in calls:
            call()
        memory = [self.memory(call) for call in calls]
        times = zip(*([self.seconds(call) for call in calls] for _ in range(RUNS)))
        return [Measurement(statistics.median(t), m) for t, m in zip(times, memory)]


def machine(device):
    """What this runs on, in words."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    words = [f"{model[1] if model else platform.machine()}, {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    return ", ".join(
        [*words, f"PyTorch {torch.__version__}", f"Python {platform.python_version()}"]
    )


def matrix_rate(device, dtype, side):
    """FLOP/s of products of square matrices."""
    a = torch.randn(side, side, device=device).to(dtype)
    seconds = Meter(device)(functools.partial(torch.mm, a, a))[0].seconds
    return 2 * side**3 / seconds


def ceilings(device, side=None):
    """Matrix rates in TFLOP/s and the bandwidth of a copy in GB/s, of this device.

    `side` is that of the matrices; what is copied is several times as large.
    """
    side = side or default_side(device)
    for dtype in (torch.float32, torch.bfloat16):
        rate = matrix_rate(device, dtype, side)
        yield f"{str(dtype)[6:]} products: {rate / 1e12:.3g} TFLOP/s"
    a = torch.empty((4 if device.type == "cuda" else 16) * side**2, device=device)
    b = torch.empty_like(a)
    seconds = Meter(device)(lambda: b.copy_(a))[0].seconds
    yield f"copy: {2 * a.numel() * 4 / seconds / 1e9:.3g} GB/s"


def default_side(device):
    """Of the matrices whose products are timed."""
    return 8192 if device.type == "cuda" else 2048
