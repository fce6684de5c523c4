"""What the experiments share: flags, where results lie, tables and figures."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags
from matplotlib.figure import Figure

import cli
from storage.files import atomic_write
from storage.workdir import Workdir


def launch(main: Callable[[int, bool], object], seed: int, published: str) -> None:
    """Define --seed and --as_published, parse the flags, and run ``main(seed, as_published)``.

    `published` says what the second changes.
    """
    flags.DEFINE_integer("seed", seed, "Seed of what is random.")
    flags.DEFINE_bool("as_published", False, published)
    cli.launch(lambda: main(flags.FLAGS.seed, flags.FLAGS.as_published))


def workdir(name: str) -> Workdir:
    """The directory ``results/experiments/{name}``, made."""
    place = Workdir(f"experiments/{name}")
    place.create()
    return place


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of strings below their heads, as Markdown."""
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    for row in (heads, ["-" * width for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        print("| " + " | ".join(cells) + " |", flush=True)


def figure_of(rows: int, columns: int, side: float = 3.0) -> tuple[Figure, np.ndarray]:
    """A figure of equal panels, and its axes as an array (rows, columns)."""
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(place: Workdir, name: str, figure: Figure) -> pathlib.Path:
    """Write a figure to ``figures/{name}.png`` of a workdir, where the report finds it."""
    path = place.figure(name)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path


def grid(low: float, high: float, count: int, dtype: str | None = None) -> np.ndarray:
    """The points (count², 2) of an even square grid, a NumPy array; the first coordinate first."""
    line = np.linspace(low, high, count, dtype=dtype)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
