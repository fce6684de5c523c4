"""A benchmark of eight minutes for a GPU: rates, correctness, then times.

    python -m studies.gpu [--seconds 480] [--file rows.md] [--small]

It is one process. Each row is printed and written to the file as soon as it is known; rows that
exceed the time limit are left out and named. It needs torch, NumPy, SciPy, absl, PyYAML and tqdm,
and names the other packages that the commands need. On a machine without a GPU it uses the CPU, for
which `--small` is meant: tiny networks, whose times are not meaningful.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import operator
import pathlib
import re
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

# The stand-in is used only if ml_collections is not installed.
sys.path.append(str(pathlib.Path(__file__).parent / "stand_in"))

from metrics import prdc
from models.compute import exact_products, has_tf32_convolutions
from studies import jobs, launches
from training.throughput import matrix_rate, wait_for

EVALUATION, DSM, QC, DLSM = launches.JOBS
TIMES = "job, ms, TFLOP/s, share, host ms, kernel ms, kernels, peak GiB, first call s".split(", ")


def missing_packages():
    """The packages of requirements.txt that are not installed."""
    text = (pathlib.Path(__file__).parents[1] / "requirements.txt").read_text()
    found = {each.name.lower().replace("_", "-") for each in importlib.metadata.distributions()}
    wanted = re.findall(r"^[\w-]+", text.replace("_", "-"), re.MULTILINE)
    return [name for name in wanted if name not in found]


class OutOfTime(BaseException):
    """The deadline has passed; ``except Exception`` does not catch it."""


def ring(number, frame):
    raise OutOfTime


@dataclasses.dataclass
class Battery:
    """The state that the rows share.

    Attributes:
        bench: a function of (device, batch), `jobs.published` or `jobs.tiny`.
        shrink: by how much batches are smaller than the published ones.
        rates: FLOP/s of matrix products by precision; filled by the first rows.
        flops: of a job, for each image; filled as jobs are measured.
    """

    device: torch.device
    bench: Callable
    shrink: int
    file: object
    rates: dict = dataclasses.field(default_factory=dict)
    flops: dict = dataclasses.field(default_factory=dict)
    heads: tuple = ()

    def write(self, line):
        """Write a line to standard output and the file, without buffering."""
        for file in (sys.stdout, self.file):
            print(line, file=file, flush=True)

    def row(self, heads, *cells):
        """Write a row of a Markdown table, after `heads` if they differ from the last row's."""
        if tuple(heads) != self.heads:
            self.heads = tuple(heads)
            self.write("")
            self.write(f"| {' | '.join(heads)} |")
            self.write(f"|{'---|' * len(heads)}")
        self.write(f"| {' | '.join(map(str, cells))} |")


# ---------------------------------------------------------------- rates


def rates(battery):
    heads = "rate", "value"
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        label = "fp32 by TF32" if name == "fp32" and has_tf32_convolutions(battery.device) else name
        battery.rates[name] = matrix_rate(battery.device, dtype)
        battery.row(heads, f"matrix products, {label}", f"{battery.rates[name] / 1e12:.4g} TFLOP/s")
    source = torch.ones(2**29 // battery.shrink**2, device=battery.device)
    copy = torch.empty_like(source)
    seconds = repeated(battery, functools.partial(copy.copy_, source), 10)
    battery.row(heads, "copies, read and written", f"{2 * source.nbytes / seconds / 1e9:.4g} GB/s")


# ---------------------------------------------------------------- correctness


def relative_error(ours, theirs):
    """|ours − theirs| over |theirs|, of tensors or lists of them taken as one."""
    ours, theirs = (torch.cat([x.detach().flatten().double() for x in xs]) for xs in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def gradients(network, loss):
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]


def published_networks(battery):
    """NCSN++ in float32 against the golden numbers."""
    import device_option

    device_option.DEVICE = str(battery.device)
    import golden

    names = [name for name in golden.names("ncsnpp_") if "v" in golden.arrays(name)]
    errors = []
    for name in names[:2] if battery.shrink > 1 else names:
        data = golden.arrays(name)
        with torch.no_grad(), exact_products():
            out = golden.network(name)(data["x"], data["cond"])
        errors.append(relative_error([out], [data["out"]]))
    return max(errors)


def right_bench(battery):
    """Small networks without dropout, whose last layers are not zero."""
    bench = jobs.tiny(battery.device)
    bench.config.model.dropout, bench.config.model.init_scale = 0.0, 1.0
    return bench


def other_way(way, battery):
    """Relative error of a score under the settings `way`, against float32."""
    bench = right_bench(battery)
    calls = [jobs.evaluation(bench, each) for each in (way, jobs.FP32)]
    with exact_products():
        ours, theirs = (call() for call in calls)
    return relative_error([ours], [theirs])


def gradient_error(name, battery):
    """Relative error of the gradient of one of `jobs.OBJECTIVES`, against double backward."""
    bench = right_bench(battery)
    network, objective = jobs.OBJECTIVES[name](bench, jobs.FP32)
    x, labels = bench.draw()
    batch = x, labels, objective.draw(x)
    network.train()
    with exact_products():
        ours = gradients(network, objective(*batch)[0])
        theirs = gradients(network, jobs.PUBLISHED[name](objective, *batch))
    return relative_error(ours, theirs)


LAST = dict(jobs.FP32, channels_last=True)
CHECKS = (
    ("NCSN++, golden numbers, fp32", published_networks, 1e-4),
    ("channels last against first, fp32", functools.partial(other_way, LAST), 1e-4),
    ("bf16, channels last, against fp32", functools.partial(other_way, jobs.EAGER), 5e-2),
    ("QC gradient, fp32", functools.partial(gradient_error, QC), 1e-3),
    ("DLSM gradient, fp32", functools.partial(gradient_error, DLSM), 1e-3),
)


def checks(battery):
    heads = "check", "relative error", "bound", ""
    for name, error_of, bound in CHECKS:
        error = error_of(battery)
        verdict = "right" if error < bound else "WRONG"
        battery.row(heads, name, f"{error:.1e}", f"{bound:.0e}", verdict)


# ---------------------------------------------------------------- times


def repeated(battery, call, repeats):
    """Seconds per call over `repeats` calls, without waiting between them."""
    call()
    wait_for(battery.device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait_for(battery.device)
    return (time.perf_counter() - start) / repeats


def enqueued(battery, call):
    """Seconds that the host takes to enqueue the work of a call, the median of three."""
    times = []
    for _ in range(3):
        wait_for(battery.device)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def kernels(battery, call):
    """The kernels of a call, (name, ms, count), the longest first; on a CPU its operations."""
    kind = battery.device.type.upper()
    activity = getattr(torch.profiler.ProfilerActivity, kind)
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        wait_for(battery.device)
    # The host's events in a GPU's profile repeat the times of their kernels.
    events = [event for event in profile.key_averages() if event.device_type.name == kind]
    time_of = operator.attrgetter(f"self_{'device' if kind == 'CUDA' else 'cpu'}_time_total")
    events.sort(key=time_of, reverse=True)
    return [(event.key, time_of(event) / 1e3, event.count) for event in events]


def peak_bytes(battery):
    if battery.device.type == "cuda":
        return torch.cuda.max_memory_allocated(battery.device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def name_of(job, way, images):
    """The name of a row of times."""
    last, how = ", channels last" * way["channels_last"], ", compiled" * way["compile"]
    return f"{job}, {images} images, {way['precision']}{last}{how}"


def timed(job, way, images, battery):
    """Write the row of a job of `launches.JOBS` for `images` images, with the settings `way`."""
    name, batch = name_of(job, way, images), max(2, images // battery.shrink)
    if job not in battery.flops:
        battery.flops[job] = flops_of(job, battery.bench(launches.GPU, batch)) / batch
    if battery.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(battery.device)
    call = launches.JOBS[job](battery.bench(battery.device, batch), way)
    start = time.perf_counter()
    call()
    wait_for(battery.device)
    first = time.perf_counter() - start
    seconds = repeated(battery, call, 1 if way["precision"] == "fp32" else 5)
    host, found = enqueued(battery, call), kernels(battery, call)
    rate = battery.flops[job] * batch / seconds
    battery.row(
        TIMES,
        name if batch == images else f"{name}, in small {batch}",
        f"{1e3 * seconds:.4g}",
        f"{rate / 1e12:.4g}",
        f"{rate / battery.rates[way['precision']]:.1%}",
        f"{1e3 * host:.4g}",
        f"{sum(ms for _, ms, _ in found):.4g}",
        sum(count for *_, count in found),
        f"{peak_bytes(battery) / 2**30:.3g}",
        f"{first:.1f}",
    )
    for kernel, ms, count in found[:15] if way == jobs.EAGER else ():
        heads = f"longest kernels of {name}", "ms", "calls"
        battery.row(heads, kernel.replace("|", "/")[:90], f"{ms:.4g}", count)


def flops_of(job, bench):
    """FLOPs of one call of a job, counted on fake tensors; `bench` is on `launches.GPU`."""
    counter = launches.Launches()
    with launches.pretended_gpu(counter):
        launches.JOBS[job](bench, jobs.EAGER)()
    return counter.flops


def metrics(battery):
    """Write the row of P/R/D/C: matrix products, and copies between host and GPU."""
    count, width = 50_000 // battery.shrink**2, 2048 // battery.shrink
    if battery.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(battery.device)
    rng = np.random.default_rng(0)
    real, fake = (rng.standard_normal((count, width), dtype=np.float32) for _ in range(2))
    start = time.perf_counter()
    prdc.precision_recall_density_coverage(real, fake, device=battery.device)
    seconds = time.perf_counter() - start
    heads = "metric", "s", "peak GiB"
    name = f"P/R/D/C of {count:,} × {width:,}"
    battery.row(heads, name, f"{seconds:.3g}", f"{peak_bytes(battery) / 2**30:.3g}")


TIMED = (
    (EVALUATION, jobs.EAGER, 100),
    (EVALUATION, jobs.EAGER, 128),
    (DSM, jobs.EAGER, 128),
    (EVALUATION, jobs.COMPILED, 128),
    (DSM, jobs.COMPILED, 128),
    (DSM, jobs.FP32, 128),
    (EVALUATION, jobs.FP32, 128),
    (QC, jobs.FP32, 64),
    (QC, jobs.EAGER, 64),
    (QC, jobs.COMPILED, 64),
    (DLSM, jobs.EAGER, 128),
)
PLAN = {"rates": rates, "checks": checks}
PLAN |= {name_of(*row): functools.partial(timed, *row) for row in TIMED}
PLAN["P/R/D/C"] = metrics
"""Name -> function of the battery that writes the rows; cheap rows before compiled ones."""


def run(battery, seconds):
    """Write the rows of `PLAN` that take at most `seconds` together."""
    signal.signal(signal.SIGALRM, ring)
    # Repeated each second: a signal within a callback of the interpreter is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    left = list(PLAN)
    with contextlib.suppress(OutOfTime):
        while left:
            try:
                PLAN[left[0]](battery)
            except Exception as error:
                text = str(error).strip().splitlines() or [""]
                battery.write(f"\n{left[0]}: failed, {type(error).__name__}: {text[0]}")
                battery.heads = ()
            del left[0]
            gc.collect()
            torch.compiler.reset()
            if battery.device.type == "cuda":
                torch.cuda.empty_cache()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if left:
        battery.write(f"\nLeft out after {seconds:g} s: {'; '.join(left)}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=480, help="time limit; later rows are left out"
    )
    parser.add_argument("--file", default="gpu_rows.md", help="output file")
    parser.add_argument("--small", action="store_true", help="tiny networks, for a CPU")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench, shrink = (jobs.tiny, 32) if arguments.small else (jobs.published, 1)
    if arguments.small:  # a CPU's compiler takes minutes
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    with open(arguments.file, "w") as file:
        battery = Battery(device, bench, shrink, file)
        missing = ", ".join(missing_packages()) or "none"
        battery.write(f"{jobs.machine(device)}. Packages to install: {missing}.")
        run(battery, arguments.seconds)


if __name__ == "__main__":
    main()
