"""One self-contained HTML page of what runs hold: curves, samples, asymmetries, metrics.

python report.py --workdir NAME [--workdir OTHER ...]

The page is ``report.html`` in the first workdir. Its pictures are part of it, so that it can be
sent and opened anywhere.
"""

import base64
import dataclasses
import io
import itertools
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

import cli
import domains
from evaluation import LABELS, SAMPLE_METRICS
from metrics.sample_sets import numbered_rounds
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir
from utils import UserError, flatten, log

TEMPLATES = pathlib.Path(__file__).parent / "scripts"
POINTS = 5000  # of a training curve; of longer ones a random choice is drawn
COLUMNS, ROWS = 8, 8  # of a sample grid
CLASSES = 100  # rows of a grid with a row per class
# How an entry of metrics.json begins -> what it is about, with a place for the sampler.
GROUPS = {
    **dict.fromkeys(["nfe", *(metric.name for metric in SAMPLE_METRICS)], "{} samples"),
    "nll_ema": "Likelihood of the EMA weights",
    "nll": "Likelihood",
    "asym_ema": "Asymmetry of the EMA weights",
    "asym": "Asymmetry",
    "cas_": "Classification accuracy score",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a data URI."""

    title: str
    uri: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number in the table of metrics, and whether it is the best of its row."""

    text: str
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir holds for the report; what it lacks is empty or None.

    Attributes:
        name: short, and another than those of the other runs.
        metrics: the content of ``metrics.json``.
        curves: of each scalar of the training its steps and values.
        asymmetry: of the raw weights (False) and of the averaged ones (True) `times`, `asym` and
            `nasym` (levels,), where they are calculated.
        samples: grids of samples.
    """

    name: str
    path: pathlib.Path
    metrics: dict
    curves: dict
    asymmetry: dict
    samples: list[Picture]


# ---------------------------------------------------------------- what a workdir holds


def short_names(workdirs: Sequence[str]) -> list[str]:
    """The last part of each workdir's name; the whole names where two of those agree."""
    names = [pathlib.PurePath(name).name for name in workdirs]
    return names if len(set(names)) == len(names) else list(workdirs)


def open_run(workdir: str, name: str) -> Run:
    """Read a workdir, which the page calls `name`.

    Raises:
        UserError: it does not exist, or a file in it is damaged.
    """
    place = Workdir(workdir)
    if not place.root.is_dir():
        raise UserError(f"The workdir {place.root} does not exist.")
    return Run(
        name,
        place.root,
        place.recorded(),
        read_curves(place.tensorboard),
        read_asymmetry(place),
        sample_pictures(place),
    )


def read_curves(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, ...]]:
    """The scalars of TensorBoard's event files: tag -> (steps, values), sorted by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every file it opens
    events = EventAccumulator(str(folder), size_guidance={"scalars": POINTS}).Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        points = sorted((event.step, event.value) for event in events.Scalars(tag))
        curves[tag] = tuple(np.array(points).T)
    return curves


def read_asymmetry(place: Workdir) -> dict[bool, dict[str, np.ndarray]]:
    """Asym and NAsym at each noise level, means over the repeats, of raw and averaged weights."""
    found = {}
    for ema in (False, True):
        paths = (place.asym(repeat, ema=ema) for repeat in itertools.count())
        repeats = list(itertools.takewhile(pathlib.Path.exists, paths))
        files = [load_npz(path, "times", "asym", "nasym") for path in repeats]
        if files:
            found[ema] = {
                name: np.mean([file[name] for file in files], axis=0) for name in files[0]
            }
    return found


def sampler_of(variant: str) -> str:
    """What the report calls the sampler of a variant, see `storage.workdir.variant`."""
    return {"": "PC", "_ode": "ODE"}.get(variant, variant.removeprefix("_").replace("_", " "))


def sample_pictures(place: Workdir) -> list[Picture]:
    """Grids of the samples drawn for evaluation, else of the last ones drawn in training."""
    pictures = []
    for variant in place.variants():
        sampler = sampler_of(variant)
        images = first_images(place.division(0, variant).parent, COLUMNS * ROWS)
        if images:
            grid = np.concatenate(list(images.values()))[: COLUMNS * ROWS]
            pictures.append(grid_picture(f"{sampler} samples", grid))
        classes = first_images(place.class_samples(0, variant).parent, COLUMNS)
        if classes:
            shown = list(classes)[:CLASSES]
            title = f"{sampler} samples, a row for each class from {shown[0]} to {shown[-1]}"
            rows = [padded(classes[label]) for label in shown]
            pictures.append(grid_picture(title, np.concatenate(rows)))
    snapshots = sorted(
        place.snapshot_samples(0).parent.glob("iter_*/sample.png"),
        key=lambda path: int(path.parent.name.removeprefix("iter_")),
    )
    if snapshots and not pictures:
        step = snapshots[-1].parent.name.removeprefix("iter_")
        uri = data_uri(snapshots[-1].read_bytes())
        pictures.append(Picture(f"Samples during training, step {step}", uri))
    return pictures


def first_images(folder: pathlib.Path, count: int) -> dict[int, np.ndarray]:
    """The first `count` images of each numbered folder in `folder`: number -> (n, H, W, C)."""
    result = {}
    numbered = [path for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]
    for part in sorted(numbered, key=lambda path: int(path.name)):
        arrays, missing = [], count
        for _, path in numbered_rounds(part):
            if missing > 0:
                arrays.append(load_npz(path, "samples")["samples"][:missing])
                missing -= len(arrays[-1])
        if arrays:
            result[int(part.name)] = np.concatenate(arrays)
    return result


def padded(images: np.ndarray) -> np.ndarray:
    """A row of COLUMNS images, black where there are fewer."""
    row = np.zeros((COLUMNS, *images.shape[1:]), images.dtype)
    row[: len(images)] = images
    return row


# ---------------------------------------------------------------- pictures


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def grid_picture(title: str, images: np.ndarray) -> Picture:
    buffer = io.BytesIO()
    domains.of_stored(images).picture(images, COLUMNS).save(buffer, format="PNG")
    return Picture(title, data_uri(buffer.getvalue()))


def plot(
    title: str,
    lines: Sequence[tuple[str, np.ndarray, np.ndarray, dict]],
    xlabel: str,
    scale: str = "linear",
    limits: tuple[float, float] | None = None,
) -> Picture:
    """A picture of lines in one pair of axes: (name, x, y) and how each is drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, x, y, style in lines:
            label = name.replace("$", r"\$")  # which would begin a formula
            axes.plot(x, y, label=label, **{"linewidth": 1.4, **style})
            if len(x) < 10:
                axes.lines[-1].set_marker(".")
        axes.set(xlabel=xlabel, ylabel=title, yscale=scale, ylim=limits)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160)
    return Picture(title, data_uri(buffer.getvalue()))


def curve_pictures(runs: Sequence[Run]) -> list[Picture]:
    """A picture for each scalar of training: thin lines of its batches, strong ones of the test."""
    tags = dict.fromkeys(tag for run in runs for tag in run.curves)
    names = dict.fromkeys(tag.partition("/")[2] for tag in tags)
    pictures = []
    for name in names:
        lines = []
        for split, style in (("train", {"alpha": 0.4, "linewidth": 1}), ("test", {})):
            lines += [
                (
                    f"{run.name}, {split}",
                    *run.curves[f"{split}/{name}"],
                    {"color": f"C{i}", **style},
                )
                for i, run in enumerate(runs)
                if f"{split}/{name}" in run.curves
            ]
        pictures.append(plot(name, lines, "step", limits=_limits([y for _, _, y, _ in lines])))
    return pictures


def _limits(curves):
    """Ends of an axis that shows all but a hundredth of the values of `curves`; None: matplotlib's.

    A few batches of a denoising loss are many times above the rest, and would flatten it.
    """
    low, high = np.percentile(np.concatenate(curves), (0.5, 99.5))
    margin = 0.05 * (high - low)
    return (low - margin, high + margin) if np.isfinite(margin) and margin > 0 else None


def asymmetry_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Asym and NAsym against the time of the noise level, with a line for each run."""
    found = [
        (f"{run.name}, EMA" if ema else run.name, values)
        for run in runs
        for ema, values in run.asymmetry.items()
    ]
    if not found:
        return []
    lines = {
        name: [(label, values["times"], values[name], {}) for label, values in found]
        for name in ("asym", "nasym")
    }
    # A paper's estimate can be below 0, where a logarithm cannot show it.
    return [
        plot(title, lines[name], "noise level t", "log" if _positive(lines[name]) else "linear")
        for name, title in (("asym", "Asym"), ("nasym", "NAsym"))
    ]


def _positive(lines):
    return all((y > 0).all() for _, _, y, _ in lines)


# ---------------------------------------------------------------- the table


def metric_groups(runs: Sequence[Run]) -> dict[str, dict[str, list[Cell]]]:
    """The recorded values in groups, a title with rows: what a value is, and each run's `Cell`."""
    groups = {}
    for column, run in enumerate(runs):
        for entry, content in run.metrics.items():
            features = content.get("settings", {}).get("features")
            title = group_of(entry) + (f", features {features}" if features else "")
            rows = groups.setdefault(title, {})
            for name in [*LABELS, *sorted(content.keys() - LABELS)]:
                if isinstance(content.get(name), float):
                    label = LABELS.get(name, name)
                    if entry.startswith("cas_"):  # what the classifier was trained on
                        label = f"{entry.removeprefix('cas_')}, {label}"
                    rows.setdefault(label, [None] * len(runs))[column] = content[name]
    return {
        title: {label: cells(label, row) for label, row in rows.items()}
        for title, rows in sorted(groups.items())
    }


def group_of(entry: str) -> str:
    """What the numbers of an entry of ``metrics.json`` are about."""
    for name, title in GROUPS.items():
        if entry.startswith(name):
            variant = entry.removeprefix(name)
            by_class = ", mean over classes" if variant.startswith("_class") else ""
            return title.format(sampler_of(variant.removeprefix("_class"))) + by_class
    return entry


def cells(label: str, row: Sequence[float | None]) -> list[Cell]:
    """The `Cell`s of a row; of different numbers the best is marked, where one way is better."""
    numbers = [value for value in row if value is not None]
    best = {"↓": min, "↑": max}.get(label[-1])
    winner = best(numbers) if best and len(set(numbers)) > 1 else None
    return [Cell("–") if value is None else Cell(f"{value:.5g}", value == winner) for value in row]


# ---------------------------------------------------------------- the page


def report(workdirs: Sequence[str]) -> pathlib.Path:
    """Write ``report.html`` into the first of `workdirs`; returns its path.

    Raises:
        UserError: a workdir does not exist or holds a damaged file.
    """
    import jinja2

    workdirs = list(dict.fromkeys(workdirs))
    runs = [open_run(*each) for each in zip(workdirs, short_names(workdirs), strict=True)]
    measured = [run for run in runs if run.metrics]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        runs=runs,
        measured=measured,
        drawn=[run for run in runs if run.samples],
        groups=metric_groups(measured),
        settings={
            run.name: sorted(
                flatten(
                    {name: each.get("settings", {}) for name, each in run.metrics.items()}
                ).items()
            )
            for run in runs
        },
        curves=curve_pictures(runs),
        asymmetries=asymmetry_pictures(runs),
    )
    path = Workdir(workdirs[0]).root / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def main() -> None:
    path = report(flags.FLAGS.workdir)
    log.info("Wrote %s.", path)


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", None, "A run to report on; given again, to compare.")
    flags.mark_flag_as_required("workdir")
    cli.launch(main)
