"""The numbers that runs have recorded, as one table: in groups, a column for each run."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from evaluation import LABELS

# Entries of metrics.json that are about samples: a metric, what it is a mean of, and the sampler.
ENTRY = re.compile(r"(?:fid_is|[a-z]+)(_class)?(?:_(.+))?")
SCORES = {"nll": "Likelihood", "asym": "Asymmetry"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number in the table, and whether it is the best of its row."""

    text: str
    best: bool = False


def metric_groups(recorded: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Cell]]]:
    """The recorded values in groups, a title with rows: what a value is, and each run's `Cell`.

    Args:
        recorded: the content of each run's ``metrics.json``.
    """
    groups = {}
    for column, metrics in enumerate(recorded):
        for entry, content in beside_quality(metrics).items():
            settings = content.get("settings", {})
            features = settings.get("features")
            title = settings.get("experiment") or group_of(entry)
            title += f", features {features}" if features else ""
            rows = groups.setdefault(title, {})
            for name in [*LABELS, *sorted(content.keys() - LABELS)]:
                if isinstance(content.get(name), float):
                    row = rows.setdefault(label_of(entry, name), [None] * len(recorded))
                    row[column] = content[name]
    return {
        title: {label: cells(label, row) for label, row in sorted_rows(rows)}
        for title, rows in sorted(groups.items())
    }


def beside_quality(metrics: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``metrics.json`` with the samples' NFE in those of their quality."""
    metrics = {entry: dict(content) for entry, content in metrics.items()}
    for entry in [entry for entry in metrics if re.fullmatch(r"nfe(_.+)?", entry)]:
        method = ENTRY.fullmatch(entry)[2]
        kin = [
            other
            for other, content in metrics.items()
            if other != entry
            and "features" in content.get("settings", {})
            and ENTRY.fullmatch(other)[2] == method
        ]
        for other in kin:
            metrics[other].setdefault("nfe", metrics[entry].get("nfe"))
        if kin:
            del metrics[entry]
    return metrics


def sorted_rows(rows: dict[str, list]) -> list[tuple[str, list]]:
    """The rows of a group in the order of the table of metrics, others behind."""
    order = list(LABELS.values())
    return sorted(rows.items(), key=lambda row: order.index(row[0]) if row[0] in order else 99)


def cells(label: str, row: list[float | None]) -> list[Cell]:
    """The `Cell`s of a row; of different numbers the best is marked, where one way is better."""
    numbers = [value for value in row if value is not None]
    best = {"↓": min, "↑": max}.get(label[-1])
    winner = best(numbers) if best and len(set(numbers)) > 1 else None
    return [Cell("–") if value is None else Cell(f"{value:.5g}", value == winner) for value in row]


def group_of(entry: str) -> str:
    """What the numbers of an entry of ``metrics.json`` are about."""
    if entry.removesuffix("_ema") in SCORES:
        weights = " of the EMA weights" if entry.endswith("_ema") else ""
        return SCORES[entry.removesuffix("_ema")] + weights
    if entry.startswith("cas_"):
        return "Classification accuracy score"
    by_class, variant = ENTRY.fullmatch(entry).groups()
    samples = {None: "Samples", "ode": "ODE samples"}.get(variant, f"{variant} samples")
    return f"{samples}, mean over classes" if by_class else samples


def label_of(entry: str, name: str) -> str:
    """What the value `name` of an entry is; of CAS, what its classifier was trained on too."""
    label = LABELS.get(name, name)
    return f"{entry.removeprefix('cas_')}, {label}" if entry.startswith("cas_") else label
