"""What training, sampling and evaluation cost on a CPU, beside the way the published code took.

    python -m studies.speed [--only JOB …]

Prints the machine and a Markdown table. Both sides of a row run in this process: the baseline in
float32, channels first, not compiled, with convolutions for resampling, create_graph double
backward, loops over parameters, two forward passes for a likelihood and SciPy on the host; ours as
the row says. Times are medians of `RUNS` runs in turns, after a warm-up in which compilations fall.
Memory is the peak of the process above what was in use before. `studies.gpu` measures a GPU.
"""

import argparse
import ctypes
import dataclasses
import functools
import gc
import pathlib
import re
import statistics
import sys
import time

import torch

import likelihood
import losses
import sampling
from metrics import prdc
from models import jacobian
from storage.ema import EMA
from studies import jobs
from studies.common import ROOT, print_table
from studies.metrics_parity import compute_prdc, real_and_fake

sys.path.append(str(ROOT / "tests"))  # the oracles that are measured against are the tests'
from oracles import double_backward, published_way

CPU = torch.device("cpu")
RUNS, PC_STEPS, PRDC = 5, 4, "P/R/D/C"
TOLERANCES = {"rtol": 1e-3, "atol": 1e-5}
WAYS = {
    "fp32": jobs.FP32,
    "bf16": dict(jobs.FP32, precision="bf16"),
    "bf16 compiled": dict(jobs.FP32, precision="bf16", compile=True),
}


# ---------------------------------------------------------------- the jobs


def published_step(objective_of, loss_of, bench, way):
    """`jobs.step` with ``loss_of(objective, x, labels, draws)`` and loops over the parameters."""
    network, objective = objective_of(bench, way)
    x, labels = bench.draw()
    parameters = [p for p in network.train().parameters() if p.requires_grad]
    rate, ema = bench.config.model.ema_rate, EMA(parameters, bench.config.model.ema_rate)
    optimizer = torch.optim.Adam(parameters, lr=bench.config.optim.lr, foreach=False)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(objective, x, labels, objective.draw(x)).backward()
        losses.optimize(optimizer, parameters, 1, bench.config.optim)
        with torch.no_grad():
            for shadow, parameter in zip(ema.shadow, parameters):
                shadow.sub_((1 - rate) * (shadow - parameter))

    return step


def dsm_loss(objective, x, labels, draws):
    return objective(x, labels, draws)[0]


def qc_loss(objective, x, labels, draws):
    return double_backward.quasi_conservative(objective, x, **draws)


def dlsm_loss(objective, x, labels, draws):
    return sum(double_backward.dlsm(objective, x, labels, **draws))


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


def both_steps(name, loss_of):
    """The published step and ours, of one of `jobs.OBJECTIVES`."""
    objective_of = jobs.OBJECTIVES[name]
    published = functools.partial(published_step, objective_of, loss_of)
    return published, functools.partial(jobs.step, objective_of)


JOBS = {
    "DSM step": both_steps("DSM step", dsm_loss),
    "QC step": both_steps("QC step", qc_loss),
    "DLSM step": both_steps("DLSM step", dlsm_loss),
    "PC sampling": (pc_sampling, pc_sampling),
    "NLL": (published_nll, nll),
}
"""Name -> the published way and ours: functions of (bench, way) that return a call."""


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
    """At the peak of a call, above what was in use before."""
    before = peak(reset=True)
    call()
    return (peak() - before) / 1e9


def measure(*calls):
    """(seconds, gigabytes) of each call; they take turns, so that all see the same machine."""
    for call in calls:
        call()
    memory = [gigabytes(call) for call in calls]
    times = zip(*([seconds(call) for call in calls] for _ in range(RUNS)))
    return list(zip(map(statistics.median, times), memory))


def as_published(call):
    with published_way.published_layers(CPU):
        call()


def rows(bench, only):
    """Yields (job, way, seconds and gigabytes of the baseline, of ours); of `only` some jobs."""
    for name in only:
        for way, settings in WAYS.items() if name in JOBS else ():
            torch.compiler.reset()
            published, ours = JOBS[name]
            baseline = functools.partial(as_published, published(bench, jobs.FP32))
            yield name, way, *measure(baseline, ours(bench, settings))
    if PRDC in only:
        real, fake = real_and_fake(10_000, 10_000, 2048)
        yield (
            f"{PRDC}, 10,000 × 2,048",
            "",
            *measure(
                lambda: compute_prdc(real, fake, nearest_k=3),
                lambda: prdc.precision_recall_density_coverage(real, fake),
            ),
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*JOBS, PRDC]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    arguments = parser.parse_args()
    bench = jobs.small(CPU)
    print(f"{jobs.machine(CPU)}; small networks, {bench.batch} images\n")
    heads = "job", "ours", "s", "baseline s", "times as fast", "GB", "baseline GB", "share"
    print_table(heads, [])
    for name, way, (their_s, their_gb), (s, gb) in rows(bench, arguments.only):
        times = f"{s:.3f} | {their_s:.3f} | {their_s / s:.2f}"
        memory = f"{gb:.2f} | {their_gb:.2f} | {gb / max(their_gb, 1e-9):.2f}"
        print(f"| {name} | {way} | {times} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
