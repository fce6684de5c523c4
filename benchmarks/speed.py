"""What training, sampling and evaluation cost here, beside the way the published code took.

python -m benchmarks.speed [--device cpu|cuda] [--size small|published] [--only NAME …]

Prints the machine and a Markdown table. Both sides of a row run in this process: the baseline in
float32, channels first, not compiled, with create_graph double backward, two forward passes for a
likelihood, SciPy on the host and per-image decoding; ours as the row says. Times are medians of
RUNS runs after a warm-up, in which compilations fall. Memory is the peak above what was in use
before (of the process on a CPU, of PyTorch's allocator on a GPU).
"""

import ctypes
import dataclasses
import gc
import pathlib
import re
import statistics
import time
from collections.abc import Callable

import torch

import losses
import models
import sde_lib
from configs import common
from models.compute import prepare
from models.ema import EMA
from models.scores import Score

RUNS = 5

# The ways to compute that are tried, as fields of `config.compute`.
BASELINE = {"precision": "fp32", "channels_last": False, "compile": False}
WAYS = {
    "cpu": {
        "fp32": BASELINE,
        "fp32 compiled": dict(BASELINE, compile=True),
        "bf16": dict(BASELINE, precision="bf16"),
        "bf16 compiled": dict(BASELINE, precision="bf16", compile=True),
    },
    "cuda": {
        "fp32": BASELINE,
        "tf32 compiled": {"precision": "tf32", "channels_last": True, "compile": True},
        "bf16": {"precision": "bf16", "channels_last": True, "compile": False},
        "bf16 compiled": {"precision": "bf16", "channels_last": True, "compile": True},
    },
}


# ---------------------------------------------------------------- measuring


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

    def __call__(self, call, warm_up=1):
        for _ in range(warm_up):
            call()
        self.synchronise()
        before = self.peak(reset=True)
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            call()
            self.synchronise()
            times.append(time.perf_counter() - start)
        return Measurement(statistics.median(times), (self.peak() - before) / 1e9)


@dataclasses.dataclass(frozen=True)
class Job:
    """A row of the table for every one of `ours`, name -> a function that builds a callable."""

    name: str
    baseline: Callable
    ours: dict


# ---------------------------------------------------------------- networks


@dataclasses.dataclass(frozen=True)
class Bench:
    """Sizes, networks and data on one device.

    Attributes:
        config: of a score model and, in `classifier`, of a classifier.
        batch, slices: images of a step, and the QC regulariser's random vectors for each.
    """

    device: torch.device
    config: object
    batch: int
    slices: int
    pc_steps: int

    @property
    def ways(self):
        return WAYS[self.device.type]

    def draw(self):
        """Images (B, C, H, W), labels (B,)."""
        torch.manual_seed(1)
        data = self.config.data
        shape = (self.batch, data.num_channels, data.image_size, data.image_size)
        labels = torch.randint(self.config.classifier.classes, (self.batch,), device=self.device)
        return torch.rand(shape, device=self.device), labels

    def sde(self):
        return sde_lib.from_config(self.config)

    def network(self, create, way):
        """A network of `models` with the same weights whatever the way to compute."""
        torch.manual_seed(0)
        settings = self.config.copy_and_resolve_references().compute
        settings.update(way)
        return prepare(create(self.config), settings, self.device)

    def score(self, way, train=True):
        network = self.network(models.create_model, way)
        if not train:
            network.eval().requires_grad_(False)
        return Score(network, self.sde())


def small(device):
    """A network of a CIFAR-10 shape that two CPU cores train in a second a step."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet_small_cond")
    config.model.nf = 64
    config.model.ch_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    return Bench(device, config, batch=8, slices=1, pc_steps=4)


def published(device):
    """The published CIFAR-10 networks and batch."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
    return Bench(device, config, batch=128, slices=1, pc_steps=10)


SIZES = {"small": small, "published": published}


def training_step(network, config, objective, x, labels):
    """A whole update, as `run_lib.training_step` makes it."""
    parameters = list(network.parameters())
    optimizer = losses.make_optimizer(parameters, config.optim)
    ema = EMA(parameters, 0.999)

    def step():
        draws = objective.draw(x)
        optimizer.zero_grad(set_to_none=True)
        loss, _ = objective(x, labels, draws)
        loss.backward()
        losses.optimize(optimizer, ema.parameters, 1, config.optim)
        ema.update()

    return step


def dsm(bench):
    x, labels = bench.draw()

    def step(way):
        score = bench.score(way)
        return training_step(
            score.net, bench.config, losses.DSM(score, bench.sde(), 1e-5), x, labels
        )

    return Job(
        "DSM step",
        lambda: step(BASELINE),
        {w: lambda w=w: step(bench.ways[w]) for w in bench.ways if w != "fp32"},
    )
