"""One self-contained HTML page of runs: their metrics, samples, asymmetry and training curves.

python report.py --workdir NAME [--workdir OTHER ...]

The page is ``report.html`` in the first workdir. Its pictures are part of it.
"""

import base64
import dataclasses
import io
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

import cli
import domains
from evaluation import LABELS
from metrics.sample_sets import numbered_rounds
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir
from utils import UserError, flatten, log

TEMPLATES = pathlib.Path(__file__).parent / "scripts"
POINTS = 5000  # of a training curve; of longer ones a random choice is drawn
COLUMNS = 8  # of a grid of samples, 8 rows high, or with a row for each class
CLASSES = 100  # whose samples are shown


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a workdir: ``metrics.json``, scalars of training, pictures (title -> PNG)."""

    name: str
    metrics: dict[str, dict]
    curves: dict[str, tuple[np.ndarray, ...]]
    pictures: dict[str, bytes]

    @classmethod
    def open(cls, workdir: str) -> "Run":
        """Read a workdir.

        Raises:
            UserError: it does not exist, or a file in it is damaged.
        """
        place = Workdir(workdir)
        if not place.root.is_dir():
            raise UserError(f"The workdir {place.root} does not exist.")
        curves = read_curves(place.tensorboard)
        return cls(workdir, place.recorded(), curves, read_pictures(place))

    @property
    def settings(self) -> list[tuple[str, object]]:
        """What the metrics are of, sorted by name."""
        nested = {entry: content.get("settings", {}) for entry, content in self.metrics.items()}
        return sorted(flatten(nested).items())


def read_curves(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, ...]]:
    """The scalars of TensorBoard's event files: tag -> (steps, values), sorted by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it logs every file
    events = EventAccumulator(str(folder), size_guidance={"scalars": POINTS}).Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        points = sorted((event.step, event.value) for event in events.Scalars(tag))
        curves[tag] = tuple(np.array(points).T)
    return curves


def read_pictures(place: Workdir) -> dict[str, bytes]:
    """Grids of the samples, or of the newest ones in training, and the plots of the asymmetry."""
    pictures = {}
    for variant in place.variants():
        for part, count, parts in (
            (place.division(0, variant), COLUMNS**2, 1),
            (place.class_samples(0, variant), COLUMNS, CLASSES),
        ):
            folders = [path for path in part.parent.glob("*") if path.name.isdecimal()]
            folders = sorted(folders, key=lambda path: int(path.name))[:parts]
            first = [path for folder in folders for _, path in numbered_rounds(folder)[:1]]
            if first:
                images = [load_npz(path, "samples")["samples"][:count] for path in first]
                pictures[part.parent.name] = grid(np.concatenate(images))
    snapshots = place.snapshot_samples(0).parent.glob("iter_*/sample.png")
    newest = sorted(snapshots, key=lambda path: int(path.parent.name.removeprefix("iter_")))[-1:]
    paths = [*([] if pictures else newest), *sorted(place.root.glob("asym*/asym.png"))]
    return pictures | {path.parent.name: path.read_bytes() for path in paths}


def grid(samples: np.ndarray) -> bytes:
    """A PNG of stored samples: images (N, H, W, C), or points (N, D)."""
    buffer = io.BytesIO()
    domains.of_stored(samples).picture(samples, COLUMNS).save(buffer, format="PNG")
    return buffer.getvalue()


def plot_curves(runs: Sequence[Run]) -> dict[str, bytes]:
    """A plot of each scalar of training, with thin lines for batches: its name -> PNG."""
    from matplotlib.figure import Figure

    pictures = {}
    for name in dict.fromkeys(tag.partition("/")[2] for run in runs for tag in run.curves):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.subplots()
        every = []
        for split, style in (("train", {"alpha": 0.4, "linewidth": 1}), ("test", {"marker": "."})):
            for index, run in enumerate(runs):
                if f"{split}/{name}" in run.curves:
                    steps, values = run.curves[f"{split}/{name}"]
                    label = f"{run.name}, {split}".replace("$", r"\$")  # no formula
                    axes.plot(steps, values, label=label, color=f"C{index}", **style)
                    every.append(values)
        # A few batches of a denoising loss are many times above the rest.
        low, high = np.nanpercentile(np.concatenate(every), (0.5, 99.5))
        axes.set(xlabel="step", ylabel=name, ylim=(low, high) if low < high else None)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160)
        pictures[name] = buffer.getvalue()
    return pictures


def metric_rows(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Entry of ``metrics.json``, with its features -> label of a value -> text for each run."""
    groups = {}
    for column, run in enumerate(runs):
        for entry, content in sorted(run.metrics.items()):
            features = content.get("settings", {}).get("features")
            rows = groups.setdefault(f"{entry}, features {features}" if features else entry, {})
            for name, label in LABELS.items():
                if name in content:
                    row = rows.setdefault(label, ["–"] * len(runs))
                    row[column] = f"{content[name]:.5g}"
    return dict(sorted(groups.items()))


def report(workdirs: Sequence[str]) -> pathlib.Path:
    """Write ``report.html`` into the first of `workdirs`; returns its path.

    Raises:
        UserError: a workdir does not exist or holds a damaged file.
    """
    import jinja2

    runs = [Run.open(workdir) for workdir in dict.fromkeys(workdirs)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    page = environment.get_template("report.html").render(
        runs=runs, groups=metric_rows(runs), curves=plot_curves(runs)
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
