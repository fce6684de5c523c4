"""Metrics of samples against real images: printed, and recorded with what they are numbers of.

A metric is an entry of the table in evaluation.py.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import ml_collections

from evaluation import SampleMetric
from metrics.classwise import classwise, split_by_class
from metrics.feature_sets import FeatureSet
from metrics.sample_sets import Round
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir, suffix
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
    place, method = Workdir(workdir), config.sampling.method
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
        path = place.classwise(metric.name, method)
        with atomic_write(path, "w") as file:
            file.write(text + "\n")
        print(text)
        print(f"Written to {path}.")
    entry = metric.name + ("_class" if mode == "class" else "") + suffix(method)
    place.record(**{entry: {**values, "settings": settings}})
    if mode == "full":
        _warn_of_few(metric, len(generated.pool), place.log_file)
    return values


def measure_sets(
    metric: SampleMetric,
    config: ml_collections.ConfigDict,
    workdir: str,
    real: FeatureSet,
    generated: FeatureSet,
    sets: int,
    backend: str = "ours",
) -> dict[str, float]:
    """Print and record a metric of several sets of samples, one of each seed, and their mean.

    The generated set is cut into `sets` parts of one size, in its order. Takes what `measure`
    does, and raises a UserError too where the samples do not make such parts.

    Returns:
        A dict of floats, the means over the sets.
    """
    compute = _backend(metric, config, backend)
    place = Workdir(workdir)
    settings = _settings(metric, config, real, generated, backend)
    parts = _cut(generated, sets)
    each = [compute(*_arrays(metric, real, part)) for part in parts]
    _settle(settings, each[0])
    names = [quantity.name for quantity in metric.quantities if quantity.name in each[0]]
    least, mean = ({name: f([v[name] for v in each]) for name in names} for f in (min, _mean))
    rows = [{"set": number, **_columns(metric, row)} for number, row in enumerate(each)]
    rows += [{"set": "minimum", **least}, {"set": "mean", **mean}]
    print(table(settings, rows))
    settings |= {"sets": sets, "minimum": least}
    entry = f"{metric.name}_sets{suffix(config.sampling.method)}"
    place.record(**{entry: {**mean, "settings": settings}})
    _warn_of_few(metric, len(parts[0].pool), place.log_file)
    return mean


def _mean(values):
    return sum(values) / len(values)


def _cut(generated, sets):
    """`sets` parts of a `FeatureSet`, of one size, one after the other."""
    size, rest = divmod(len(generated.pool), sets)
    if rest:
        raise UserError(
            f"{generated.source} holds {len(generated.pool)} samples, which do not make {sets} "
            "sets of one size (--sets)."
        )
    slices = [slice(start, start + size) for start in range(0, size * sets, size)]
    return [
        dataclasses.replace(generated, pool=generated.pool[part], logits=generated.logits[part])
        for part in slices
    ]


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
    words = [f"{name.replace('_', ' ')} {origin[name]}" for name in known]
    if "sampling" in origin:
        words.append(f"sampler {origin['sampling']['method']}")
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


def nfe(config: ml_collections.ConfigDict, workdir: str, rounds: Sequence[Round]) -> float:
    """Print and record the mean number of function evaluations of the samples in `rounds`.

    Raises:
        UserError: a file does not hold its number.
    """
    total = sum(item.rows for item in rounds)
    mean = sum(item.rows * _nfe_of(item.path) for item in rounds) / total
    settings = {"generated": total, "samples": rounds[0].origin}
    entry = f"nfe{suffix(config.sampling.method)}"
    Workdir(workdir).record(**{entry: {"nfe": mean, "settings": settings}})
    print(f"Mean NFE {mean:.1f} over {total} samples{_describe(rounds[0].origin)}")
    return mean


def _nfe_of(path):
    value = load_npz(path, "nfe")["nfe"]
    if value.size != 1 or value.dtype.kind not in "iuf":
        raise UserError(f"{path} holds nfe of {value.dtype} and shape {value.shape}, no number.")
    return float(value.item())
