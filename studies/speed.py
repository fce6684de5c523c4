"""Cost of training, sampling and evaluation on a CPU, against the published code's computations.

    python -m studies.speed

Prints the machine and a Markdown table. Both sides of a row run in this process: the baseline in
float32, channels first, not compiled, with convolutions for resampling, create_graph double
backward, loops over parameters, two forward passes for a likelihood and SciPy on the host; ours as
the row says. Times are medians of `RUNS` alternating runs, after a warm-up that includes
compilation. Memory is the process's peak above its use before. `studies.gpu` measures a GPU.
"""

import argparse
import ctypes
import dataclasses
import functools
import gc
import pathlib
import re
import statistics
import time

import torch

import likelihood
import losses
import sampling
from models import jacobian
from storage.ema import EMA
from studies import jobs
from studies.common import print_table

from oracles import published_way  # isort: skip  # the tests', see `jobs`

CPU = torch.device("cpu")
RUNS, PC_STEPS = 5, 4
TOLERANCES = {"rtol": 1e-3, "atol": 1e-5}
WAYS = {
    "fp32": jobs.FP32,
    "bf16": dict(jobs.FP32, precision="bf16"),
    "bf16 compiled": dict(jobs.FP32, precision="bf16", compile=True),
}


# ---------------------------------------------------------------- the jobs


def published_step(name, bench, way):
    """`jobs.step` by double backward and with loops over the parameters."""
    network, objective = jobs.OBJECTIVES[name](bench, way)
    x, labels = bench.draw()
    parameters = [p for p in network.train().parameters() if p.requires_grad]
    rate, ema = bench.config.model.ema_rate, EMA(parameters, bench.config.model.ema_rate)
    optimizer = torch.optim.Adam(parameters, lr=bench.config.optim.lr, foreach=False)

    def step():
        optimizer.zero_grad(set_to_none=True)
        jobs.PUBLISHED[name](objective, x, labels, objective.draw(x)).backward()
        losses.optimize(optimizer, parameters, 1, bench.config.optim)
        with torch.no_grad():
            for shadow, parameter in zip(ema.shadow, parameters):
                shadow.sub_((1 - rate) * (shadow - parameter))

    return step


def pc_sampling(bench, way):
    sde = dataclasses.replace(bench.sde, N=PC_STEPS)
    sampler, score = sampling.from_config(bench.config.sampling, sde), bench.score(way)
    x, _ = bench.draw()
    return lambda: sampler(score, torch.randn_like(x))


def likelihood_of(bench, way):
    """A score, the SDE, a quarter of the images and their random vectors."""
    x = bench.draw()[0][: bench.batch // 4]
    return bench.score(way), bench.sde, x, jacobian.rademacher(torch.randn_like(x))


def nll(bench, way):
    score, sde, x, epsilon = likelihood_of(bench, way)
    return lambda: likelihood.log_likelihood(score, sde, x, epsilon[None], **TOLERANCES)


def published_nll(bench, way):
    score, sde, x, epsilon = likelihood_of(bench, way)
    return lambda: published_way.bits_ode(sde, score, x, epsilon, **TOLERANCES)


JOBS = {
    name: (functools.partial(published_step, name), functools.partial(jobs.step, objective_of))
    for name, objective_of in jobs.OBJECTIVES.items()
} | {
    "PC sampling": (pc_sampling, pc_sampling),
    "NLL": (published_nll, nll),
}
"""Name -> the published computation and ours: functions of (bench, way) that return a call."""


# ---------------------------------------------------------------- measuring


def peak(reset=False):
    """Bytes of the process at the peak since the last reset."""
    if reset:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def gigabytes(call):
    """Peak memory of a call in GB, above what was in use before."""
    before = peak(reset=True)
    call()
    return (peak() - before) / 1e9


def measure(*calls):
    """(seconds, gigabytes) of each call; calls alternate, so that load affects all equally."""
    for call in calls:
        call()
    memory = [gigabytes(call) for call in calls]
    times = zip(*([seconds(call) for call in calls] for _ in range(RUNS)))
    return list(zip(map(statistics.median, times), memory))


def as_published(call):
    with published_way.published_layers(CPU):
        call()


def rows(bench):
    """Yields (job, way, seconds and gigabytes of the baseline, of ours)."""
    for name, (published, ours) in JOBS.items():
        for way, settings in WAYS.items():
            torch.compiler.reset()
            baseline = functools.partial(as_published, published(bench, jobs.FP32))
            yield name, way, *measure(baseline, ours(bench, settings))


def main():
    bench = jobs.small(CPU)
    print(f"{jobs.machine(CPU)}; small networks, {bench.batch} images\n")
    heads = "job", "ours", "s", "baseline s", "times as fast", "GB", "baseline GB", "share"
    print_table(heads, [])
    for name, way, (their_s, their_gb), (s, gb) in rows(bench):
        times = f"{s:.3f} | {their_s:.3f} | {their_s / s:.2f}"
        memory = f"{gb:.2f} | {their_gb:.2f} | {gb / max(their_gb, 1e-9):.2f}"
        print(f"| {name} | {way} | {times} | {memory} |", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    main()
