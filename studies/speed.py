"""What training, sampling and evaluation cost here, beside the way the published code took.

    python -m studies.speed [--device cpu|cuda] [--size small|published] [--only JOB …]

Prints the machine and a Markdown table. Both sides of a row run in this process: the baseline in
float32, channels first, not compiled, with convolutions for resampling, create_graph double
backward, loops over parameters, two forward passes for a likelihood and SciPy on the host; ours as
the row says. Times are medians of `RUNS` runs in turns, after a warm-up in which compilations fall.
Memory is the peak above what was in use before, of the process on a CPU, of PyTorch's allocator on
a GPU.
"""

import argparse
import ctypes
import dataclasses
import functools
import gc
import pathlib
import platform
import re
import statistics
import sys
import time

import torch

import domains
import likelihood
import losses
import models
import sampling
import sde_lib
from configs import common
from metrics import prdc
from models import jacobian
from models.compute import freeze, prepare
from models.scores import Score
from storage.ema import EMA
from studies.common import ROOT, print_table
from studies.metrics_parity import compute_prdc, real_and_fake

sys.path.append(str(ROOT / "tests"))  # the oracles that are measured against are the tests'
from oracles import double_backward, published_way

RUNS, PRDC = 5, "P/R/D/C"
# The ways to compute that are tried, as fields of `config.compute`.
BASELINE = {"precision": "fp32", "channels_last": False, "compile": False}
WAYS = {
    "cpu": {
        "fp32": BASELINE,
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


@dataclasses.dataclass(frozen=True)
class Bench:
    """Sizes, networks and data on one device.

    Attributes:
        config: of a score model and, in `classifier`, of a classifier.
        batch: images of a step.
        pc_steps: steps of the PC sampler.
    """

    device: torch.device
    config: object
    batch: int
    pc_steps: int

    def draw(self):
        """Images (B, C, H, W), labels (B,)."""
        torch.manual_seed(1)
        shape = (self.batch, *domains.from_config(self.config.data).shape)
        labels = torch.randint(self.config.classifier.classes, (self.batch,), device=self.device)
        return torch.rand(shape, device=self.device), labels

    @property
    def sde(self):
        return sde_lib.from_config(self.config)

    def network(self, create, way, ready=prepare):
        """A network of `models` with the same weights whatever the way to compute."""
        torch.manual_seed(0)
        settings = self.config.copy_and_resolve_references().compute
        settings.update(way)
        return ready(create(self.config), settings, self.device)

    def score(self, way, ready=freeze):
        return Score(self.network(models.create_model, way, ready), self.sde)


def small(device):
    """A score network that two CPU cores train in a second a step; the published classifier."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
    config.model.nf = 64
    config.model.ch_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    return Bench(device, config, batch=16, pc_steps=4)


def published(device):
    """The published CIFAR-10 networks and batch."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
    return Bench(device, config, batch=128, pc_steps=10)


SIZES = {"small": small, "published": published}


# ---------------------------------------------------------------- the jobs


def update(network, config, loss, baseline):
    """A call that makes one update: the gradient of ``loss()``, and the optimiser's step."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    ema = EMA(parameters, config.model.ema_rate)
    if baseline:
        optimizer = torch.optim.Adam(parameters, lr=config.optim.lr, foreach=False)
    else:
        optimizer = losses.make_optimizer(parameters, config.optim)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        losses.optimize(optimizer, parameters, 1, config.optim)
        if not baseline:
            ema.update()
            return
        with torch.no_grad():
            for shadow, parameter in zip(ema.shadow, parameters):
                shadow.sub_((1 - config.model.ema_rate) * (shadow - parameter))

    return step


def dsm(bench, way, baseline):
    x, labels = bench.draw()
    score = bench.score(way, prepare)
    objective = losses.DSM(score, bench.sde, 1e-5)
    return update(
        score.net, bench.config, lambda: objective(x, labels, objective.draw(x))[0], baseline
    )


def qc(bench, way, baseline):
    x, labels = bench.draw()
    score = bench.score(way, prepare)
    objective = losses.QuasiConservative(score, bench.sde, 1e-5, balancing_fac=1e-4, slices=1)

    def loss():
        draws = objective.draw(x)
        if baseline:
            return double_backward.quasi_conservative(objective, x, **draws)
        return objective(x, labels, draws)[0]

    return update(score.net, bench.config, loss, baseline)


def dlsm(bench, way, baseline):
    x, labels = bench.draw()
    classifier = bench.network(models.create_classifier, way)
    objective = losses.DLSM(classifier, bench.score(way), bench.sde, 1e-5)

    def loss():
        draws = objective.draw(x)
        if baseline:
            return sum(double_backward.dlsm(objective, x, labels, **draws))
        return objective(x, labels, draws)[0]

    return update(classifier, bench.config, loss, baseline)


def pc_sampling(bench, way, baseline):
    """Both sides take the same steps."""
    sde = dataclasses.replace(bench.sde, N=bench.pc_steps)
    sampler, score = sampling.from_config(bench.config.sampling, sde), bench.score(way)
    x, _ = bench.draw()
    return lambda: sampler(score, torch.randn_like(x))


def nll(bench, way, baseline):
    score = bench.score(way)
    x = bench.draw()[0][: bench.batch // 4]
    epsilon = jacobian.rademacher(torch.randn_like(x))
    tolerances = {"rtol": 1e-3, "atol": 1e-5}
    if baseline:
        return lambda: published_way.bits_ode(bench.sde, score, x, epsilon, **tolerances)
    return lambda: likelihood.log_likelihood(score, bench.sde, x, epsilon[None], **tolerances)


NETWORK_JOBS = {
    "DSM step": dsm,
    "QC step": qc,
    "DLSM step": dlsm,
    "PC sampling": pc_sampling,
    "NLL": nll,
}


# ---------------------------------------------------------------- measuring


@dataclasses.dataclass(frozen=True)
class Meter:
    """Seconds and gigabytes of calls on a device."""

    device: torch.device

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

    def gigabytes(self, call):
        """At the peak of a call, above what was in use before."""
        self.synchronise()
        before = self.peak(reset=True)
        self.seconds(call)
        return (self.peak() - before) / 1e9

    def seconds(self, call):
        self.synchronise()
        start = time.perf_counter()
        call()
        self.synchronise()
        return time.perf_counter() - start

    def __call__(self, *calls):
        """(seconds, gigabytes) of each call; they take turns, so that all see the same machine."""
        for call in calls:
            call()
        memory = [self.gigabytes(call) for call in calls]
        times = zip(*([self.seconds(call) for call in calls] for _ in range(RUNS)))
        return list(zip(map(statistics.median, times), memory))


def machine(device):
    """What this runs on, in words."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    words = [f"{cpu[1] if cpu else platform.machine()}, {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    words += [f"PyTorch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join(words)


def as_published(device, call):
    with published_way.published_layers(device):
        call()


def rows(bench, only):
    """Yields (job, way, seconds and gigabytes of the baseline, of ours); of `only` some jobs."""
    meter = Meter(bench.device)
    for name in only:
        ways = WAYS[bench.device.type] if name in NETWORK_JOBS else {}
        for way, settings in ways.items():
            torch.compiler.reset()
            baseline = NETWORK_JOBS[name](bench, BASELINE, baseline=True)
            ours = NETWORK_JOBS[name](bench, settings, baseline=False)
            yield name, way, *meter(functools.partial(as_published, bench.device, baseline), ours)
    if PRDC in only:
        real, fake = real_and_fake(10_000, 10_000, 2048)
        calls = (
            lambda: compute_prdc(real, fake, nearest_k=3),
            lambda: prdc.precision_recall_density_coverage(real, fake, device=bench.device),
        )
        yield f"{PRDC}, 10,000 × 2,048", "", *meter(*calls)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES)
    jobs = [*NETWORK_JOBS, PRDC]
    parser.add_argument("--only", nargs="*", choices=jobs, default=jobs)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    size = arguments.size or ("published" if device.type == "cuda" else "small")
    bench = SIZES[size](device)
    print(f"{machine(device)}; {size} networks, {bench.batch} images\n")
    heads = "job", "ours", "s", "baseline s", "times as fast", "GB", "baseline GB", "share"
    print_table(heads, [])
    for name, way, (their_s, their_gb), (s, gb) in rows(bench, arguments.only):
        times = f"{s:.3f} | {their_s:.3f} | {their_s / s:.2f}"
        memory = f"{gb:.2f} | {their_gb:.2f} | {gb / max(their_gb, 1e-9):.2f}"
        print(f"| {name} | {way} | {times} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
