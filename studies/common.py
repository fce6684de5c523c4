"""Shared by the studies: tables, means over seeds, grids, commands, parts of data."""

import itertools
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

import ml_collections
import numpy as np
from absl import flags
from scipy import stats

import datasets
from storage.files import atomic_write
from utils import UserError, require_positive

ROOT = pathlib.Path(__file__).parent.parent


def define_seeds(default: Sequence[int]) -> None:
    """Define the flag --seeds."""
    flags.DEFINE_multi_integer("seeds", list(default), "Seeds of trainings and draws.")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, each row as soon as it is known."""
    for row in itertools.chain((heads, ["---"] * len(heads)), rows):
        print(f"| {' | '.join(row)} |", flush=True)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation as text; a single value alone, and nothing without values."""
    if len(values) < 2:
        return "".join(f"{value:.4g}" for value in values)
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


def paired_p(first: Sequence[float], other: Sequence[float]) -> float | None:
    """p of Student's paired test of `other` against `first`; None if it is undefined."""
    more = np.subtract(other, first)
    return stats.ttest_1samp(more, 0).pvalue if len(more) and np.ptp(more) > 0 else None


def difference(first: Sequence[float], other: Sequence[float], limit: float = 0.0) -> str:
    """Mean ± standard deviation of other − first over seeds, and p, with "held" if p ≤ `limit`."""
    more, p = np.subtract(other, first), paired_p(first, other)
    if not more.any():
        return ""
    held = ", held" if p is not None and p <= limit else ""
    return spread(more) + ("" if p is None else f" (p = {p:.2g}{held})")


def holm(p_values: Sequence[float], level: float = 0.05) -> float:
    """The largest of the p-values that Holm's step-down test rejects at `level`, or 0."""
    largest = 0.0
    for k, p in enumerate(sorted(p_values)):
        if p > level / (len(p_values) - k):
            break
        largest = p
    return largest


def print_seeds(
    title: str,
    results: Mapping[str, Sequence[Mapping[str, float]]],
    reference: str | None = None,
) -> None:
    """Print mean ± standard deviation over seeds, and paired differences from one row.

    Prints the number of p-values in the table, and marks "held" those that Holm's test rejects.

    Args:
        results: row -> for each seed the numbers by column.
        reference: the row with which later rows of as many seeds, several, are compared.
    """
    columns = list(dict.fromkeys(key for seeds in results.values() for key in seeds[0]))
    values = {
        name: [[seed[key] for seed in seeds if key in seed] for key in columns]
        for name, seeds in results.items()
    }
    counts = {name: str(len(seeds)) for name, seeds in results.items()}
    rows = [[name, counts[name], *map(spread, values[name])] for name in results]
    p_values = []
    if len(results.get(reference, ())) > 1:
        names = list(results)
        pairs = {
            name: list(zip(values[reference], values[name]))
            for name in names[names.index(reference) + 1 :]
            if counts[name] == counts[reference]
        }
        tested = [paired_p(*pair) for row in pairs.values() for pair in row if all(pair)]
        p_values = [p for p in tested if p is not None]
        for name, row in pairs.items():
            cells = [difference(*pair, holm(p_values)) if all(pair) else "" for pair in row]
            rows.append([f"{name} − {reference}", counts[name], *cells])
    print()
    print_table([title, "seeds", *columns], rows)
    if p_values:
        print(f"{len(p_values)} p-values; held: at 0.05 by Holm's test of all of them.")


def grid(low: float, high: float, count: int, dtype: str | None = None) -> np.ndarray:
    """The points (count², 2) of an even square grid; the second coordinate varies fastest."""
    line = np.linspace(low, high, count, dtype=dtype)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


# ---------------------------------------------------------------- commands and parts of data


def run(script: str, config: str, workdir: str, *flags: str) -> None:
    """Run a script of the repository; if it fails, exit with its status."""
    arguments = [f"--config={ROOT / config}", f"--workdir={workdir}", *flags]
    print("$", script, *arguments, flush=True)
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


SPLITS = {"train": ("train", 1), "test": ("test", 1), "validation": ("test", -1)}
"""Name of a part -> its split, and 1 for the split's first images or −1 for its last."""


def part_of_fashion_mnist(data: ml_collections.ConfigDict, name: str, count: int) -> pathlib.Path:
    """A data root whose Fashion-MNIST has `count` images in the split of `SPLITS[name]`.

    The other split is whole. `data` is the section of the configuration.

    Raises:
        UserError: the split has too few images, or `count` is not positive.
    """
    require_positive(count, "The number of images")
    root = pathlib.Path("results/studies") / f"{name}-{count}"
    chosen, side = SPLITS[name]
    for split, stem in (("train", "train"), ("test", "t10k")):
        whole, kept = datasets.load(data, split), slice(None)
        if split == chosen:
            kept = slice(count) if side > 0 else slice(-count, None)
            if len(whole) < count:
                raise UserError(f"The {split} split has {len(whole)} images, too few for {root}.")
        arrays = {"images-idx3": whole.images[kept, 0], "labels-idx1": whole.labels[kept]}
        for kind, array in arrays.items():
            path = root / "fashion_mnist" / f"{stem}-{kind}-ubyte"
            if path.exists():  # the cache of a data set depends on the times of its files
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(bytes([0, 0, 8, array.ndim]))
                file.write(np.array(array.shape, ">u4").tobytes())
                file.write(array.astype(np.uint8).tobytes())
    return root


def sample_metrics(recorded: Mapping[str, Mapping], ending: str) -> dict[str, float]:
    """FID and P/R/D/C among the entries of ``metrics.json`` whose names have this ending."""
    names = "precision", "recall", "density", "coverage"
    spheres = recorded[f"prdc{ending}"]
    return {"FID": recorded[f"fid_is{ending}"]["fid"], **{name: spheres[name] for name in names}}
