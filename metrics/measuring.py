"""Metrics of samples against real images: printed, and recorded with what they are numbers of.

A metric is an entry of the table in evaluation.py.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import ml_collections

from evaluation import SampleMetric
from metrics.classwise import classwise, split_by_class
from metrics.feature_sets import FeatureSet
from metrics.sample_sets import find_samples, mean_nfe
from storage.files import atomic_write
from storage.workdir import Workdir, variant
from utils import UserError, log, log_to, lookup


def measure(
    metric: SampleMetric,
    config: ml_collections.ConfigDict,
    workdir: str,
    real: FeatureSet,
    generated: FeatureSet,
    mode: str = "full",
    backend: str = "ours",
) -> dict[str, float]:
    """Print and record a metric of samples: over all of them, or class by class.

    Args:
        metric: the `SampleMetric`.
        real, generated: a `FeatureSet` each.
        mode: "full", or "class" for every class and the means over them.
        backend: who computes it.

    Returns:
        A dict of floats: of all samples, or the means over classes.

    Raises:
        UserError: the sets do not compare or are too small, or there is no such backend.
    """
    compute = _backend(metric, config, backend)
    place, kind = Workdir(workdir), variant(config)
    settings = _settings(metric, config, real, generated, backend)
    if mode == "full":
        values = compute(*_arrays(metric, real, generated))
        _settle(settings, values)
        print(table(settings, [{"": "all", **_columns(metric, values)}]))
    else:
        each, values = classwise(compute, *_classes(metric, real, generated))
        _settle(settings, values)
        settings["classes"] = len(each)
        rows = [{"class": label, **_columns(metric, row)} for label, row in enumerate(each)]
        text = table(settings, [*rows, {"class": "mean", **_columns(metric, values)}])
        path = place.classwise(metric.name, kind)
        with atomic_write(path, "w") as file:
            file.write(text + "\n")
        print(text)
        print(f"Written to {path}.")
    entry = metric.name + ("_class" if mode == "class" else "") + kind
    place.record(**{entry: {**values, "settings": settings}})
    if mode == "full":
        _warn_of_few(metric, len(generated.pool), place.log_file)
    return values


def print_metric(
    metric: SampleMetric,
    config: ml_collections.ConfigDict,
    real: FeatureSet,
    generated: FeatureSet,
    backend: str = "ours",
) -> dict[str, float]:
    """Print a metric of sets that belong to no run; nothing is recorded.

    Takes, returns and raises what `measure` does.
    """
    values = _backend(metric, config, backend)(*_arrays(metric, real, generated))
    settings = _settings(metric, config, real, generated, backend)
    _settle(settings, values)
    print(table(settings, [{"": "all", **_columns(metric, values)}]))
    _warn_of_few(metric, len(generated.pool))
    return values


def _backend(metric, config, name):
    """The function of (N, D) arrays that computes `metric`."""
    compute = lookup(metric.backends, name, f"--backend of --{metric.flag}")
    return functools.partial(compute, config)


def _warn_of_few(metric, count, log_file=None):
    """Say in the log if a metric of `count` samples does not compare with published numbers."""
    if count < metric.usual_samples:
        log_to(log_file)
        log.warning(
            "--%s of %d samples: published numbers are of %d, and those of fewer are biased. "
            "Compare numbers of equal counts only.",
            metric.flag,
            count,
            metric.usual_samples,
        )


def _arrays(metric, real, generated):
    """The arrays that `metric` takes, in order."""
    sets = {"real": real, "generated": generated}
    return [getattr(sets[which], name) for which, name in metric.needs]


def _classes(metric, real, generated):
    """The same arrays, each as a list with a part for every class."""
    sizes = {"real": real.sizes, "generated": generated.sizes}
    arrays = _arrays(metric, real, generated)
    return [
        split_by_class(array, sizes[which])
        for array, (which, _) in zip(arrays, metric.needs, strict=True)
    ]


def _columns(metric, values):
    """The metric's quantities, but for those that these features do not give."""
    names = [quantity.name for quantity in metric.quantities]
    return {name: values[name] for name in names if name in values}


def _settings(metric, config, real, generated, backend):
    """What numbers of these sets are numbers of: their settings in ``metrics.json``.

    Raises:
        UserError: the sets are of different feature extractors.
    """
    return {
        "backend": backend,
        **{name: config.eval[name] for name in metric.settings},
        "features": _common_extractor(real, generated),
        "generated": len(generated.pool),
        "real": len(real.pool),
        "real_features": str(real.source),
        "samples": generated.origin,
    }


def _settle(settings, values):
    """Move to `settings` what a metric had to take instead of them, from its `values`; log it."""
    for name in settings.keys() & values.keys():
        used = values.pop(name)
        if used != settings[name]:
            log.warning(
                "config.eval.%s is %s, more than these sets allow; %s was taken. Compare with "
                "numbers of the same %s only.",
                name,
                settings[name],
                used,
                name,
            )
        settings[name] = used


def _common_extractor(real, generated):
    """The feature extractor that both sets are of.

    Raises:
        UserError: there is none.
    """
    common = [name for name in generated.extractors if name in real.extractors]
    if not common:
        raise UserError(
            f"{generated.source} holds features of {' or '.join(generated.extractors)}, "
            f"{real.source} those of {' or '.join(real.extractors)}; only features of one network "
            "compare. Encode one of them again."
        )
    return common[0]


def _describe(origin):
    """What made samples, in a few words."""
    known = [name for name in origin if name.endswith("step") or name in ("seed", "folder")]
    words = [
        f"{name.replace('_', ' ')} {'none' if origin[name] is None else origin[name]}"
        for name in known
    ]
    if "checkpoint" in origin:
        words.insert(0, origin["checkpoint"])
    if "ema" in origin:
        words.insert(0, "EMA weights" if origin["ema"] else "raw weights")
    if "sampling" in origin:
        sampling = origin["sampling"]
        words.append(f"sampler {sampling['method']}")
        words += [f"scale {sampling['scaling_factor']:g}"] if "scaling_factor" in sampling else []
    words += [f"NFE {origin['nfe']:g}"] if "nfe" in origin else []
    return f" ({', '.join(words)})" if words else ""


def table(settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Lines of text: as comments what the numbers are of, then a column for each key of `rows`."""
    cells = [list(rows[0])]
    cells += [
        [f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        f"# features {settings['features']}",
        f"# {settings['generated']} samples{_describe(settings['samples'])}, "
        f"{settings['real']} real images",
    ]
    lines += ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def nfe(config: ml_collections.ConfigDict, workdir: str) -> float:
    """Print and record the mean number of function evaluations of the run's samples.

    Raises:
        UserError: samples are missing, or a file does not hold its number.
    """
    place = Workdir(workdir)
    rounds = list(itertools.chain.from_iterable(find_samples(config, place)))
    mean, total = mean_nfe(rounds), sum(item.rows for item in rounds)
    if mean is None:
        path = next(item.path for item in rounds if item.nfe is None)
        raise UserError(f"{path} does not hold the NFE of its samples.")
    settings = {"generated": total, "samples": rounds[0].origin}
    place.record(**{f"nfe{variant(config)}": {"nfe": mean, "settings": settings}})
    print(f"Mean NFE {mean:.1f} over {total} samples{_describe(rounds[0].origin)}")
    return mean
