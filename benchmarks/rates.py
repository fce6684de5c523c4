"""What share of a device's matrix rate the networks reach, and the hours that a paper's run takes.

python -m benchmarks.rates [--device cpu|cuda] [--size small|published] [--only JOB …]
    [--ways WAY …] [--images N]

Prints the machine and a Markdown table of the jobs of `benchmarks.speed` whose work is fixed. FLOP
are those of convolutions and products, counted as PyTorch runs them; the rate beside them is that
of products of large matrices in the same precision. Hours are the measured seconds times the steps
and images of the published configurations (CIFAR-10), with the published networks alone.
"""

import torch
from planning.costs import Flops

from benchmarks import speed
from benchmarks.measuring import Meter, default_side, matrix_rate

# The types and the precision of float32 products of a way's `config.compute.precision`.
PRODUCTS = {
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
}
# A paper's run in the job's own units: images that its steps see, or images of 1,000 PC steps.
RUNS = {
    "DSM step": ("950,001 steps of 128", 950_001 * 128),
    "QC step": ("150,001 steps of 128, one slice", 150_001 * 128),
    "DLSM step": ("60,000 steps of 150", 60_000 * 150),
    "PC sampling": ("50,000 samples, 2,000 evaluations", 50_000),
}
PC_STEPS = 1000


def flops(call):
    """FLOP of a call's convolutions and products."""
    with Flops() as counter:
        call()
    return counter.total


def rate_of(bench, precision):
    """FLOP/s of products of large matrices in a precision of `config.compute`."""
    dtype, products = PRODUCTS[precision]
    torch.set_float32_matmul_precision(products)
    return matrix_rate(bench.device, dtype, bench.side or default_side(bench.device))


def hours(name, seconds, bench):
    """Of the paper's run, from the seconds of one call."""
    per_image = seconds / bench.batch
    if name == "PC sampling":
        per_image *= PC_STEPS / bench.pc_steps
    return RUNS[name][1] * per_image / 3600


def rows(bench, only, ways):
    """Yields (job, way, seconds, FLOP, the matrix rate)."""
    for name in RUNS:
        if only and not any(text in name for text in only):
            continue
        job = speed.NETWORK_JOBS[name]
        # Counted eagerly, because nothing is seen of what is compiled.
        count = flops(job(bench, speed.BASELINE, baseline=False))
        for way, settings in bench.ways.items():
            if ways and way not in ways:
                continue
            torch.compiler.reset()
            rate = rate_of(bench, settings["precision"])
            (measured,) = Meter(bench.device)(job(bench, settings, baseline=False))
            yield name, way, measured.seconds, count, rate


def main():
    bench, only, ways = speed.asked_for(__doc__)
    print("\n| job | way | images/s | TFLOP | TFLOP/s | share of the matrix rate | paper's run |")
    print("|---|---|---|---|---|---|---|")
    published = bench.config.model.nf == speed.published(bench.device).config.model.nf
    for name, way, seconds, count, rate in rows(bench, only, ways):
        run = f"{RUNS[name][0]}: {hours(name, seconds, bench):.3g} hours" if published else ""
        print(
            f"| {name} | {way} | {bench.batch / seconds:.4g} | {count / 1e12:.4g} "
            f"| {count / seconds / 1e12:.4g} | {count / seconds / rate:.3f} | {run} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
