"""One self-contained HTML page of runs: models, metrics, samples, real images, training curves.

python report.py --workdir NAME [--workdir OTHER ...]

The page is ``report.html`` in the first workdir. It embeds its pictures.
"""

import base64
import dataclasses
import datetime
import io
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

import cli
import datasets
import domains
from evaluation import LABELS, describe_origin
from metrics.sample_sets import numbered_rounds, read_round
from storage import checkpoints
from storage.files import atomic_write
from storage.workdir import Workdir
from utils import UserError, flatten, log, random_stream

TEMPLATES = pathlib.Path(__file__).parent / "scripts"
POINTS = 5000  # most points of a training curve; longer ones are subsampled at random
COLUMNS = 8  # of a grid of samples, 8 rows high, or with a row for each class
CLASSES = 100  # most classes with samples in the report
# The settings in ``metrics.json`` that are shown with the values, and the names of some there.
FACTS = (
    *("generated", "images", "real", "classes", "trained_on", "tested_on", "features"),
    *("recogniser", "ema", "checkpoint", "checkpoint_step", "classifier_step", "method"),
    *("scaling_factor", "nfe", "atol", "rtol", "estimator", "slices", "noise_levels", "repeats"),
    *("nearest_k", "kid_subset_size", "date"),
)
NAMES = {"generated": "samples", "real": "real images", "ema": "weights", "method": "sampler"}
NAMES |= {"scaling_factor": "scale", "nfe": "sampler's NFE", "checkpoint_step": "step"}


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a workdir; `note` says why it shows no real images, if it does not."""

    name: str
    metrics: dict[str, dict]
    model: dict[str, Any]  # facts about the network of the newest checkpoint
    curves: dict[str, tuple[np.ndarray, ...]]
    pictures: dict[str, bytes]  # title -> PNG
    note: str = ""

    @classmethod
    def open(cls, workdir: str) -> "Run":
        """Read a workdir.

        Raises:
            UserError: it does not exist, or a file in it is damaged.
        """
        place, note = Workdir(workdir), ""
        place.require()
        model, config = read_checkpoint(place.checkpoint())
        pictures, labels = read_samples(place)
        if pictures:
            try:
                pictures = real_images(config, labels) | pictures
            except UserError as error:
                note = f"No real images are shown. {error}"
        for path in sorted(place.root.glob("asym*/asym.png")):
            pictures[f"{path.parent.name}: Asym and NAsym against time t"] = path.read_bytes()
        curves = read_curves(place.tensorboard)
        return cls(workdir, place.recorded(), model, curves, pictures, note)

    @property
    def settings(self) -> list[tuple[str, object]]:
        """The settings of all metrics, sorted by name."""
        return sorted(flatten({n: c.get("settings", {}) for n, c in self.metrics.items()}).items())


def read_checkpoint(path: pathlib.Path) -> tuple[dict[str, Any], ConfigDict | None]:
    """Facts about the network of a checkpoint, and its configuration; None if it holds none.

    Raises:
        UserError: the file is damaged.
    """
    content = checkpoints.read(path) if path.exists() else {}
    config = checkpoints.config_of(content) or {}
    fields, data = flatten(config), content.get("data") or {}
    averages = content.get("ema", {}).get("shadow_params", ())  # one for each trained parameter
    facts = {
        "network": fields.get("classifier.model", fields.get("model.name")),
        "parameters": sum(array.numel() for array in averages) or None,
        "step": content.get("step"),
        "data": data.get("dataset"),
        "training images": sum(data.get("counts", ())) or None,
        "date": datetime.date.fromtimestamp(path.stat().st_mtime) if content else None,
    }
    return facts, ConfigDict(config) if config else None


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


def read_samples(place: Workdir) -> tuple[dict[str, bytes], list[int]]:
    """Grids of the samples, or of the newest ones of training; and the classes of the rows."""
    pictures, labels = {}, []
    for variant in place.variants():
        for part, count, parts in (
            (place.division(0, variant), COLUMNS**2, 1),
            (place.class_samples(0, variant), COLUMNS, CLASSES),
        ):
            folders = [path for path in part.parent.glob("*") if path.name.isdecimal()]
            folders = sorted(folders, key=lambda path: int(path.name))[:parts]
            firsts = [first for folder in folders for first in numbered_rounds(folder)[:1]]
            rounds = [read_round(*first, "samples") for first in firsts]
            if rounds:
                labels = [int(item.path.parent.name) for item in rounds] if parts > 1 else []
                shown = np.concatenate([item.read()[:count] for item in rounds])
                nfe = {} if rounds[0].nfe is None else {"nfe": rounds[0].nfe}
                origin = describe_origin(rounds[0].origin | nfe)
                pictures[f"{part.parent.name}: {len(shown)} samples{origin}"] = grid(shown)
    if not pictures:
        grids = place.snapshot_samples(0).parent.glob("iter_*/sample.png")
        steps = {int(path.parent.name.removeprefix("iter_")): path for path in grids}
        for step in sorted(steps)[-1:]:
            pictures[f"samples in training at step {step}"] = steps[step].read_bytes()
    return pictures, labels


def real_images(config: ConfigDict | None, labels: Sequence[int]) -> dict[str, bytes]:
    """A grid of training images: a row for each of the classes `labels`, or a random choice.

    Raises:
        UserError: there is no configuration that names the data, or no cache of them.
    """
    if config is None:
        raise UserError("The workdir has no checkpoint that names its training data.")
    split = datasets.open_cached(config.data, "train")
    if split is None:
        raise UserError(f"{config.data.cache} does not hold {config.data.dataset}.")
    rows = [np.flatnonzero(split.labels == label)[:COLUMNS] for label in labels]
    rows = rows or [random_stream("report").permutation(len(split))[: COLUMNS**2]]
    images = np.array(split.images[np.concatenate(rows)])
    picture = grid(domains.channels_last(images) if images.ndim == 4 else images)
    return {f"{config.data.dataset}: {len(images)} of the real training data": picture}


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


def metric_tables(runs: Sequence[Run]) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """Labels and rows of values, for each set of labels, feature network and number of classes."""
    groups = {}
    for run in runs:
        for content in run.metrics.values():
            names = [name for name in content if isinstance(content[name], float)]
            names.sort(key=lambda name: [*LABELS, name].index(name))
            numbers = {LABELS.get(name, name): content[name] for name in names}
            facts = facts_of(content)
            key = tuple(numbers), facts["features"], facts["classes"]
            groups.setdefault(key, []).append({"run": run.name, **numbers, **facts})
    return [(numbers, filled(rows)) for (numbers, *_), rows in groups.items()]


def facts_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an entry of ``metrics.json``: a column for each of `FACTS`."""
    settings = content.get("settings", {})
    origin = settings.get("samples", settings)
    known = {**settings, **origin, **origin.get("sampling", {})}
    known |= {name: content[name] for name in ("date", "repeats") if name in content}
    known.setdefault("checkpoint_step", known.get("score_step"))
    if "ema" in known:
        known["ema"] = {True: "EMA", False: "raw", None: "of the file"}[known["ema"]]
    return {NAMES.get(name, name.replace("_", " ")): known.get(name) for name in FACTS}


def filled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table, without the columns in which all are None."""
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return [{name: row[name] for name in columns} for row in rows]


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
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    page = environment.get_template("report.html").render(
        runs=runs,
        models=filled([{"run": run.name, **run.model} for run in runs]),
        metrics=metric_tables(runs),
        curves=plot_curves(runs),
    )
    path = Workdir(workdirs[0]).root / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def main() -> None:
    log.info("Wrote %s.", report(flags.FLAGS.workdir))


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", None, "A run to report on; repeat the flag to compare.")
    flags.mark_flag_as_required("workdir")
    cli.launch(main)
