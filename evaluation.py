"""The registry of metrics; computes, prints and records metrics of samples.

A metric of samples compares features of generated images with those of real ones. To add one, add
an entry to SAMPLE_METRICS and a function on (N, D) arrays to `metrics`. A metric of a score is
computed from the model, over the test split (`run_lib_likelihood`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from metrics import kid, prdc
from metrics.feature_sets import FeatureSet
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.sample_sets import find_samples, mean_nfe
from storage.files import atomic_write
from storage.workdir import Workdir, variant
from utils import UserError, get_device, log, log_to


@dataclasses.dataclass(frozen=True)
class SampleMetric:
    """A metric that compares generated with real images, from the features of both.

    Attributes:
        name: its key in ``metrics.json``, and the name of its file of values by class.
        flag: its flag on the command line.
        help: the flag's help.
        labels: key of a value -> its name in the report, with ↓ or ↑ for the better direction.
        compute: function of the real set, the generated set and the configuration to a dict of
            floats; a key in `settings` gives the value that was used instead of the setting.
        settings: the fields of ``config.eval`` that the numbers depend on.
        usual_samples: the number of samples behind published values; fewer samples bias them.
    """

    name: str
    flag: str
    help: str
    labels: dict[str, str]
    compute: Callable[[FeatureSet, FeatureSet, ml_collections.ConfigDict], dict[str, float]]
    settings: tuple[str, ...] = ()
    usual_samples: int = 0


def fid_and_is(
    real: FeatureSet, generated: FeatureSet, config: ml_collections.ConfigDict
) -> dict[str, float]:
    """FID of pooled features, and Inception score of logits if there are any."""
    values = {"fid": frechet_distance(real.pool, generated.pool)}
    if generated.logits.shape[1]:
        values["is"] = inception_score(generated.logits)
    return values


def precision_recall_density_coverage(
    real: FeatureSet, generated: FeatureSet, config: ml_collections.ConfigDict
) -> dict[str, float]:
    """See `prdc.precision_recall_density_coverage`."""
    return prdc.precision_recall_density_coverage(
        real.pool, generated.pool, config.eval.nearest_k, get_device(config.device)
    )


SAMPLE_METRICS = [
    SampleMetric(
        name="fid_is",
        flag="fidis",
        help="FID and Inception score.",
        labels={"fid": "FID ↓", "is": "Inception score ↑"},
        compute=fid_and_is,
        usual_samples=50_000,
    ),
    SampleMetric(
        name="kid",
        flag="kid",
        help="KID: its mean and standard deviation over random subsets.",
        labels={"kid": "KID ↓", "kid_std": "standard deviation of the KID"},
        compute=lambda real, generated, config: kid.kernel_inception_distance(
            real.pool, generated.pool, config.eval.kid_subset_size
        ),
        settings=("kid_subset_size",),
    ),
    SampleMetric(
        name="prdc",
        flag="prdc",
        help="Precision, recall, density and coverage.",
        labels={name: f"{name} ↑" for name in ("precision", "recall", "density", "coverage")},
        compute=precision_recall_density_coverage,
        settings=("nearest_k",),
    ),
]
"""A configuration may append to this list; --measure takes the names."""

# Name (--metric) of a metric of a score model over the test split -> labels of its values.
SCORE_METRICS = {
    "nll": {
        "bits_per_dim": "NLL, bits/dim ↓",
        "nats": "NLL, nats ↓",
        "standard_error": "standard error of the NLL",
    },
    "asym": {"asym": "Asym ↓", "nasym": "NAsym ↓"},
}

# What ``scripts/recognise.py`` records -> labels.
RECOGNISED = {
    "recognised": "recognised ↑",
    "real_recognised": "recognised real images",
    "as_asked": "as the class asked for ↑",
}

# Key of a value in ``metrics.json`` -> its name in the report. NFE counts evaluations of a
# sampler, or of the likelihood's ODE; accuracy is the classification accuracy score.
LABELS = {
    name: label
    for labels in (
        *(metric.labels for metric in SAMPLE_METRICS),
        *SCORE_METRICS.values(),
        {"nfe": "NFE", "accuracy": "accuracy ↑"},
        RECOGNISED,
    )
    for name, label in labels.items()
}


# ---------------------------------------------------------------- metrics of samples


def measure(
    metrics: Sequence[SampleMetric],
    config: ml_collections.ConfigDict,
    real: FeatureSet,
    generated: FeatureSet,
    place: Workdir,
    mode: str = "full",
) -> None:
    """Print metrics of samples, and record them in the workdir `place`.

    Args:
        place: the run of the samples.
        mode: "full": over all samples; "class": for every class, and the means over classes.

    Raises:
        UserError: the sets are of different feature networks, or too small for a metric, or its
            values are NaN or not in its labels; the other metrics are printed first.
    """
    faults = []
    for metric in metrics:
        settings = settings_of(metric, config, real, generated)
        try:
            if mode == "class":
                rows = classwise(metric, real, generated, config)
                settings["classes"] = len(rows) - 1
            else:
                rows = {"all": metric.compute(real, generated, config)}
            for values in rows.values():
                require_numbers(metric, values, settings)
        except UserError as error:
            faults.append(f"{metric.name}: {error}")
            continue
        values = list(rows.values())[-1]
        for name in settings.keys() & values.keys():
            if values[name] != settings[name]:
                message = "config.eval.%s is %s, more than these sets allow; %s was used."
                log.warning(message, name, settings[name], values[name])
            settings[name] = values.pop(name)
        text = table(metric, rows, settings)
        print(text)
        entry = metric.name + ("_class" if mode == "class" else "") + variant(config)
        place.record(**{entry: {**values, "settings": settings}})
        if mode == "class":
            path = place.classwise(metric.name, variant(config))
            with atomic_write(path, "w") as file:
                file.write(text + "\n")
            print(f"Written to {path}.")
        if mode == "full" and len(generated.pool) < metric.usual_samples:
            log_to(place.log_file)
            log.warning(
                "--%s of %d samples: published values are of %d, and fewer samples bias them. "
                "Compare only values of equal counts.",
                metric.flag,
                len(generated.pool),
                metric.usual_samples,
            )
    if faults:
        raise UserError(" ".join(faults))


def require_numbers(
    metric: SampleMetric, values: dict[str, float], settings: dict[str, Any]
) -> None:
    """Raise a UserError if a value is NaN, or its name is neither a label nor a setting."""
    for name, value in values.items():
        if name not in metric.labels and name not in settings:
            raise UserError(f"the value {name!r} is not in its labels, {', '.join(metric.labels)}.")
        if np.isnan(value):
            raise UserError(f"the value {name} is NaN.")


def settings_of(
    metric: SampleMetric,
    config: ml_collections.ConfigDict,
    real: FeatureSet,
    generated: FeatureSet,
) -> dict[str, Any]:
    """The settings that the values depend on, for ``metrics.json``.

    Raises:
        UserError: the sets are of different feature networks.
    """
    common = [name for name in generated.extractors if name in real.extractors]
    if not common:
        raise UserError(
            f"{generated.source} holds features of {' or '.join(generated.extractors)}, "
            f"{real.source} features of {' or '.join(real.extractors)}; only features of one "
            "network are comparable. Encode one of them again."
        )
    return {
        **{name: config.eval[name] for name in metric.settings},
        "features": common[0],
        "generated": len(generated.pool),
        "real": len(real.pool),
        "real_features": str(real.source),
        "real_samples": without_classes(real.origin),
        "samples": without_classes(generated.origin),
    }


def classwise(
    metric: SampleMetric, real: FeatureSet, generated: FeatureSet, config: ml_collections.ConfigDict
) -> dict[str, dict[str, float]]:
    """A metric class by class, and the means over classes: the papers' CW metrics.

    Raises:
        UserError: the sets have unequal numbers of classes, or a class is too small.
    """
    if len(real.sizes) != len(generated.sizes):
        raise UserError(
            f"The real images have {len(real.sizes)} classes, the samples {len(generated.sizes)}; "
            "class-wise metrics need equal numbers."
        )
    rows = {}
    pairs = list(zip(real.by_class(), generated.by_class(), strict=True))
    for label, sets in enumerate(tqdm(pairs, desc="classes", unit="class", delay=1)):
        try:
            rows[str(label)] = metric.compute(*sets, config)
        except UserError as error:
            raise UserError(f"Class {label}: {error}") from None
    means = {name: float(np.mean([row[name] for row in rows.values()])) for name in rows["0"]}
    return {**rows, "mean": means}


def table(metric: SampleMetric, rows: dict[str, dict[str, float]], settings: dict[str, Any]) -> str:
    """Lines of text: comments that describe both sets, then a line for each of `rows`."""
    names = [name for name in metric.labels if name in list(rows.values())[-1]]
    cells = [["class" if "classes" in settings else "", *names]]
    cells += [[label, *(f"{row[name]:.6g}" for name in names)] for label, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"# features {settings['features']}",
        f"# {settings['generated']} samples{describe_origin(settings['samples'])}, "
        f"{settings['real']} real images{describe_origin(settings['real_samples'])}",
    ]
    lines += ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def without_classes(origin: dict[str, Any]) -> dict[str, Any]:
    """An origin without the class names, which may be hundreds."""
    return {name: value for name, value in origin.items() if name != "classes"}


def describe_origin(origin: dict[str, Any]) -> str:
    """A short text about the model and settings of samples or of a likelihood."""
    words = []
    if "ema" in origin:
        words.append({True: "EMA weights", False: "raw weights"}.get(origin["ema"], "weights"))
    if "checkpoint" in origin:
        words.append(origin["checkpoint"])
    for name in origin:
        if name.endswith("step") or name in ("seed", "dataset", "split"):
            value = "none" if origin[name] is None else origin[name]
            words.append(f"{name.replace('_', ' ')} {value}")
    if "sampling" in origin:
        sampling = origin["sampling"]
        words.append(f"sampler {sampling['method']}")
        words += [f"scale {sampling['scaling_factor']:g}"] if "scaling_factor" in sampling else []
        words += [f"{name} {sampling[name]:g}" for name in ("rtol", "atol") if name in sampling]
    words += [f"NFE {origin['nfe']:g}"] if "nfe" in origin else []
    return f" ({', '.join(words)})" if words else ""


def nfe(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Print and record the mean number of function evaluations of the run's samples.

    Raises:
        UserError: samples are missing, or a file does not hold its NFE.
    """
    place = Workdir(workdir)
    rounds = list(itertools.chain.from_iterable(find_samples(config, place)))
    mean, total = mean_nfe(rounds), sum(item.rows for item in rounds)
    if mean is None:
        raise UserError(f"The samples of {workdir} do not hold their NFE.")
    origin = without_classes(rounds[0].origin)
    settings = {"generated": total, "samples": origin}
    place.record(**{f"nfe{variant(config)}": {"nfe": mean, "settings": settings}})
    print(f"Mean NFE {mean:.1f} over {total} samples{describe_origin(origin)}")
