"""The table of metrics, and metrics of samples: computed, printed, recorded.

A metric of samples compares features of generated images with those of real ones; adding one is an
entry of SAMPLE_METRICS and a function on (N, D) arrays in `metrics`. A metric of a score is taken
of a model itself, over the test split. Every metric gives a few named numbers, its quantities.

PyTorch is imported where it is used: the environment of ``requirements-tfgan.txt`` has none.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from metrics import frechet, inception_score, kid, prdc
from metrics.feature_sets import FeatureSet
from metrics.sample_sets import find_samples, mean_nfe
from storage.files import atomic_write
from storage.workdir import Workdir, variant
from utils import UserError, get_device, log, log_to, lookup

OURS = "ours"  # the back end of a metric that the others, oracles, are there to test


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that a metric gives.

    Attributes:
        name: its key in ``metrics.json`` and its column in printed tables.
        label: what the report calls it.
        better: which way is better, "↓" or "↑"; empty where there is none.
    """

    name: str
    label: str
    better: str = ""

    @property
    def title(self) -> str:
        return f"{self.label} {self.better}".rstrip()


@dataclasses.dataclass(frozen=True)
class SampleMetric:
    """A metric of generated images beside real ones, from the features of both.

    Attributes:
        name: its key in ``metrics.json`` and the name of its file of every class's values.
        flag: asks for it on the command line.
        help: what the flag says of itself.
        quantities: what it gives.
        needs: the arrays that it takes, in order: which set, and which of its features.
        backends: who computes it, by the name that --backend takes: ``f(*arrays, config=config)``,
            which returns a dict of floats, and in it what it took instead of one of its settings.
        settings: the fields of ``config.eval`` that the numbers depend on.
        usual_samples: of how many samples published numbers are, where fewer give others.
    """

    name: str
    flag: str
    help: str
    quantities: tuple[Quantity, ...]
    needs: tuple[tuple[str, str], ...]
    backends: dict[str, Callable[..., dict[str, float]]]
    settings: tuple[str, ...] = ()
    usual_samples: int = 0


# ---------------------------------------------------------------- the table


def fid_and_is(
    real: np.ndarray,
    fake: np.ndarray,
    fake_logits: np.ndarray,
    config: ml_collections.ConfigDict | None = None,
) -> dict[str, float]:
    """FID of pooled features (N, D), (M, D) and Inception score of logits (M, K).

    Features without logits (K = 0) have no score.
    """
    values = {"fid": frechet.frechet_distance(real, fake)}
    if fake_logits.shape[1]:
        values["is"] = inception_score.inception_score(fake_logits)
    return values


def tfgan_fid_and_is(
    real: np.ndarray,
    fake: np.ndarray,
    fake_logits: np.ndarray,
    config: ml_collections.ConfigDict | None = None,
) -> dict[str, float]:
    """What `fid_and_is` returns, computed by TF-GAN."""
    return {
        "fid": frechet.tfgan_frechet_distance(real, fake),
        "is": inception_score.tfgan_inception_score(fake_logits),
    }


REAL, GENERATED = ("real", "pool"), ("generated", "pool")
LOGITS = ("generated", "logits")

SAMPLE_METRICS = (
    SampleMetric(
        name="fid_is",
        flag="fidis",
        help="FID and Inception score.",
        quantities=(Quantity("fid", "FID", "↓"), Quantity("is", "Inception score", "↑")),
        needs=(REAL, GENERATED, LOGITS),
        backends={OURS: fid_and_is, "tfgan": tfgan_fid_and_is},
        usual_samples=50_000,
    ),
    SampleMetric(
        name="kid",
        flag="kid",
        help="KID: its mean and standard deviation over random subsets.",
        quantities=(
            Quantity("kid", "KID", "↓"),
            Quantity("kid_std", "standard deviation of the KID"),
        ),
        needs=(REAL, GENERATED),
        backends={
            OURS: lambda *sets, config: kid.kernel_inception_distance(
                *sets, config.eval.kid_subset_size
            ),
            "torch-fidelity": lambda *sets, config: kid.torch_fidelity_kid(
                *sets, config.eval.kid_subset_size
            ),
        },
        settings=("kid_subset_size",),
    ),
    SampleMetric(
        name="prdc",
        flag="prdc",
        help="Precision, recall, density and coverage.",
        quantities=tuple(
            Quantity(name, name, "↑") for name in ("precision", "recall", "density", "coverage")
        ),
        needs=(REAL, GENERATED),
        backends={
            OURS: lambda *sets, config: prdc.precision_recall_density_coverage(
                *sets, config.eval.nearest_k, config.eval.block_bytes, get_device(config.device)
            ),
            "prdc": lambda *sets, config: prdc.prdc_package(*sets, config.eval.nearest_k),
        },
        settings=("nearest_k",),
    ),
)

NFE = Quantity("nfe", "NFE")  # evaluations of a sampler, or of the likelihood's ODE

# What --metric calls a metric of a score model over the test split, and its quantities.
SCORE_METRICS = {
    "nll": (
        Quantity("bits_per_dim", "NLL, bits/dim", "↓"),
        Quantity("nats", "NLL, nats", "↓"),
        Quantity("standard_error", "standard error of the NLL"),
        NFE,
    ),
    "asym": (Quantity("asym", "Asym", "↓"), Quantity("nasym", "NAsym", "↓")),
}

ACCURACY = Quantity("accuracy", "accuracy", "↑")  # the classification accuracy score's

BACKENDS = tuple(dict.fromkeys(name for metric in SAMPLE_METRICS for name in metric.backends))
LABELS = {
    quantity.name: quantity.title
    for quantity in itertools.chain(
        *(metric.quantities for metric in SAMPLE_METRICS), *SCORE_METRICS.values(), [ACCURACY]
    )
}


# ---------------------------------------------------------------- metrics of samples


def measure(
    metrics: Sequence[SampleMetric],
    config: ml_collections.ConfigDict,
    real: FeatureSet,
    generated: FeatureSet,
    backend: str = OURS,
    mode: str = "full",
    place: Workdir | None = None,
) -> None:
    """Print metrics of samples, and record them in the workdir `place`.

    Args:
        backend: who computes them.
        mode: "full": over all samples; "class": for every class, and the means over them.
        place: the run of the samples; None: they are of none, and nothing is recorded.

    Raises:
        UserError: a metric cannot be taken; the others are taken all the same.
    """
    faults = []
    for metric in metrics:
        try:
            compute = lookup(metric.backends, backend, f"--backend of --{metric.flag}")
            compute = functools.partial(compute, config=config)
            settings = settings_of(metric, config, real, generated, backend)
            sets = {"real": real, "generated": generated}
            arrays = [getattr(sets[which], name) for which, name in metric.needs]
            if mode == "full":
                rows = {"all": compute(*arrays)}
            else:
                sizes = [sets[which].sizes for which, _ in metric.needs]
                rows = classwise(compute, arrays, sizes)
                settings["classes"] = len(sizes[0])
            report(metric, rows, settings, mode, place, variant(config))
        except UserError as error:
            faults.append(f"--{metric.flag}: {error}")
    if faults:
        raise UserError(" ".join(faults))


def settings_of(
    metric: SampleMetric,
    config: ml_collections.ConfigDict,
    real: FeatureSet,
    generated: FeatureSet,
    backend: str,
) -> dict[str, Any]:
    """What numbers of these sets are numbers of: their settings in ``metrics.json``.

    Raises:
        UserError: the sets are of different feature extractors.
    """
    common = [name for name in generated.extractors if name in real.extractors]
    if not common:
        raise UserError(
            f"{generated.source} holds features of {' or '.join(generated.extractors)}, "
            f"{real.source} those of {' or '.join(real.extractors)}; only features of one network "
            "compare. Encode one of them again."
        )
    return {
        "backend": backend,
        **{name: config.eval[name] for name in metric.settings},
        "features": common[0],
        "generated": len(generated.pool),
        "real": len(real.pool),
        "real_features": str(real.source),
        "real_samples": {n: v for n, v in real.origin.items() if n != "classes"},
        "samples": {n: v for n, v in generated.origin.items() if n != "classes"},
    }


def classwise(
    compute: Callable[..., dict[str, float]],
    arrays: Sequence[np.ndarray],
    sizes: Sequence[Sequence[int]],
) -> dict[str, dict[str, float]]:
    """A metric class by class, and the means over classes: the papers' CW metrics.

    Args:
        compute: takes one class's rows of each array.
        arrays: features (N, D) that lie class after class.
        sizes: for each array the number of rows of each class.

    Raises:
        UserError: the arrays have unequal numbers of classes, or `compute` refuses a class.
    """
    if len({len(each) for each in sizes}) != 1:
        counts = ", ".join(str(len(each)) for each in sizes)
        raise UserError(f"The sets hold {counts} classes; class-wise metrics need equal numbers.")
    parts = [
        np.split(array, np.cumsum(each)[:-1]) for array, each in zip(arrays, sizes, strict=True)
    ]
    rows = {}
    classes = list(zip(*parts, strict=True))
    for label, sets in enumerate(tqdm(classes, desc="classes", unit="class", delay=1)):
        try:
            rows[str(label)] = compute(*sets)
        except UserError as error:
            raise UserError(f"Class {label}: {error}") from None
    means = {name: float(np.mean([row[name] for row in rows.values()])) for name in rows["0"]}
    return {**rows, "mean": means}


def report(
    metric: SampleMetric,
    rows: dict[str, dict[str, float]],
    settings: dict[str, Any],
    mode: str,
    place: Workdir | None,
    kind: str,
) -> None:
    """Print `rows` of a metric, and record the last one in the workdir `place`.

    Args:
        rows: the values of all samples, or of each class and their means.
        settings: what they are numbers of.
        kind: the variant of the samples, see `storage.workdir.variant`.
    """
    values = list(rows.values())[-1]
    settle(settings, values)
    text = table(settings, "class" if mode == "class" else "", rows, metric.quantities)
    print(text)
    if place is not None:
        if mode == "class":
            path = place.classwise(metric.name, kind)
            with atomic_write(path, "w") as file:
                file.write(text + "\n")
            print(f"Written to {path}.")
        entry = metric.name + ("_class" if mode == "class" else "") + kind
        place.record(**{entry: {**values, "settings": settings}})
    if mode == "full" and settings["generated"] < metric.usual_samples:
        log_to(place and place.log_file)
        log.warning(
            "--%s of %d samples: published numbers are of %d, and those of fewer are biased. "
            "Compare numbers of equal counts only.",
            metric.flag,
            settings["generated"],
            metric.usual_samples,
        )


def settle(settings: dict[str, Any], values: dict[str, float]) -> None:
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


def table(
    settings: dict[str, Any],
    header: str,
    rows: dict[str, dict[str, float]],
    quantities: Sequence[Quantity],
) -> str:
    """Lines of text: as comments what the numbers are of, then a row for each of `rows`."""
    values = list(rows.values())
    names = [quantity.name for quantity in quantities if quantity.name in values[0]]
    cells = [[header, *names]]
    cells += [[label, *(f"{row[name]:.6g}" for name in names)] for label, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"# features {settings['features']}",
        f"# {settings['generated']} samples{origin_in_words(settings['samples'])}, "
        f"{settings['real']} real images{origin_in_words(settings['real_samples'])}",
    ]
    lines += ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def origin_in_words(origin: dict[str, Any]) -> str:
    """What made samples, in a few words."""
    words = []
    if "ema" in origin:
        words.append({True: "EMA weights", False: "raw weights"}.get(origin["ema"], "weights"))
    if "checkpoint" in origin:
        words.append(origin["checkpoint"])
    for name in origin:
        if name.endswith("step") or name in ("seed", "folder", "dataset", "split"):
            value = "none" if origin[name] is None else origin[name]
            words.append(f"{name.replace('_', ' ')} {value}")
    if "sampling" in origin:
        sampling = origin["sampling"]
        words.append(f"sampler {sampling['method']}")
        words += [f"scale {sampling['scaling_factor']:g}"] if "scaling_factor" in sampling else []
    words += [f"NFE {origin['nfe']:g}"] if "nfe" in origin else []
    return f" ({', '.join(words)})" if words else ""


def nfe(config: ml_collections.ConfigDict, workdir: str) -> None:
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
    origin = {n: v for n, v in rounds[0].origin.items() if n != "classes"}
    settings = {"generated": total, "samples": origin}
    place.record(**{f"nfe{variant(config)}": {"nfe": mean, "settings": settings}})
    print(f"Mean NFE {mean:.1f} over {total} samples{origin_in_words(rounds[0].origin)}")
