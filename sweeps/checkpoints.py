"""Metrics of samples of every checkpoint of a run, as a table and a plot.

Each checkpoint has a workdir of its own, ``over_checkpoints/{index}`` in that of the run, with its
samples, features and numbers: what stands there is not drawn or encoded again.
"""

import csv
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_collections

import run_lib_sampling
from evaluation import SampleMetric
from metrics import encoding, feature_sets, measuring, sharing
from storage import checkpoints
from storage.files import atomic_write
from storage.workdir import Workdir, suffix
from utils import UserError, is_first, log

if TYPE_CHECKING:  # matplotlib is imported where a plot is made
    from matplotlib.figure import Figure


def measure(
    config: ml_collections.ConfigDict,
    workdir: str,
    metrics: Sequence[SampleMetric],
    dataset_stat: str | os.PathLike | None = None,
    backend: str = "ours",
) -> None:
    """Draw, encode and measure the samples of every numbered checkpoint of `workdir`.

    Writes ``over_checkpoints/{metric}[_METHOD].csv`` and ``.png``, and prints the metrics of each.

    Args:
        metrics: the `SampleMetric`s.
        dataset_stat: file of the real images' features; None: as `feature_sets.open_sets`.

    Raises:
        UserError: there are no checkpoints, no features of real images, or something does not fit.
    """
    place = Workdir(workdir)
    numbers = place.numbers()
    if not numbers:
        raise UserError(
            f"{place.checkpoints} holds no checkpoint_N.pth; train first, or put some there."
        )
    real = feature_sets.find_real(config, workdir, dataset_stat)
    rows = {metric.name: [] for metric in metrics}
    for number in numbers:
        own, path = place.of_checkpoint(number), place.checkpoint(number)
        step = checkpoints.read_count(checkpoints.read(path), "step", path, 0)
        log.info("Checkpoint %d, step %d.", number, step)
        run_lib_sampling.sample(config, own.name, checkpoint=path)
        sharing.wait()
        encoding.encode_samples(config, own.name)
        if not is_first():
            continue
        sets = feature_sets.open_sets(config, own.name, real)
        for metric in metrics:
            values = measuring.measure(metric, config, own.name, *sets, backend=backend)
            rows[metric.name].append({"checkpoint": number, "step": step, **values})
    if is_first():
        for metric in metrics:
            write(metric, rows[metric.name], place, config.sampling.method)


def write(
    metric: SampleMetric, rows: Sequence[dict[str, float]], place: Workdir, method: str
) -> None:
    """The table and the plot of a metric; a dict of each checkpoint's values is a row."""
    table = place.over_checkpoints / f"{metric.name}{suffix(method)}.csv"
    with atomic_write(table, "w") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(table.with_suffix(".png")) as file:
        plot(metric, rows).savefig(file, format="png", dpi=150)
    best = best_of(metric, rows)
    log.info("Wrote %s and its plot%s.", table, f"; {best}" if best else "")


def best_of(metric: SampleMetric, rows: Sequence[dict[str, float]]) -> str:
    """A sentence on the best checkpoint by the metric's first quantity; empty if none is better."""
    quantity = metric.quantities[0]
    if not quantity.better:
        return ""
    choose = min if quantity.better == "↓" else max
    row = choose(rows, key=lambda row: row[quantity.name])
    where = f"checkpoint {row['checkpoint']}, step {row['step']}"
    return f"the best {quantity.label}, {row[quantity.name]:.6g}, is of {where}"


def plot(metric: SampleMetric, rows: Sequence[dict[str, float]]) -> "Figure":
    """Each quantity of `metric` against the step, a matplotlib figure."""
    from matplotlib.figure import Figure

    # Features without logits give no Inception score.
    quantities = [quantity for quantity in metric.quantities if quantity.name in rows[0]]
    figure = Figure(figsize=(4 * len(quantities), 3), layout="constrained")
    axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    for ax, quantity in zip(axes, quantities, strict=True):
        ax.plot([row["step"] for row in rows], [row[quantity.name] for row in rows], marker=".")
        ax.set(xlabel="step", ylabel=quantity.title)
        ax.grid(alpha=0.3)
    return figure
