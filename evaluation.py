"""The table of metrics: what flags, commands, printed tables and the report know of them.

A metric of samples compares features of generated images with those of real ones; adding one is an
entry of SAMPLE_METRICS and a function on (N, D) arrays in `metrics`. A metric of a score is taken
of a model itself, over the test split. Every metric gives a few named numbers, its quantities.

What takes PyTorch is imported where it is used: the environment of ``requirements-tfgan.txt``
has none.
"""

import dataclasses
from collections.abc import Callable

import ml_collections
import numpy as np

from metrics import frechet, inception_score, kid, prdc
from utils import get_device

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
        backends: who computes it, by the name that --backend takes: ``f(config, *arrays)``, which
            returns a dict of floats, and in it what it took instead of one of its settings.
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


@dataclasses.dataclass(frozen=True)
class ScoreMetric:
    """A metric of a score model over the test split.

    Attributes:
        name: what --metric calls it, and its key in ``metrics.json``.
        quantities: what it gives.
    """

    name: str
    quantities: tuple[Quantity, ...]


# ---------------------------------------------------------------- back ends

Arrays = np.ndarray  # or memory maps, or torch tensors


def fid_and_is(real: Arrays, fake: Arrays, fake_logits: Arrays) -> dict[str, float]:
    """FID of pooled features (N, D), (M, D) and Inception score of logits (M, K).

    Features without logits (K = 0) have no score.
    """
    values = {"fid": frechet.frechet_distance(real, fake)}
    if fake_logits.shape[1]:
        values["is"] = inception_score.inception_score(fake_logits)
    return values


def tfgan_fid_and_is(real: Arrays, fake: Arrays, fake_logits: Arrays) -> dict[str, float]:
    """What `fid_and_is` returns, computed by TF-GAN."""
    return {
        "fid": frechet.tfgan_frechet_distance(real, fake),
        "is": inception_score.tfgan_inception_score(fake_logits),
    }


def _fidis(config: ml_collections.ConfigDict, *arrays: Arrays) -> dict[str, float]:
    return fid_and_is(*arrays)


def _tfgan_fidis(config: ml_collections.ConfigDict, *arrays: Arrays) -> dict[str, float]:
    return tfgan_fid_and_is(*arrays)


def _prdc(config: ml_collections.ConfigDict, *arrays: Arrays) -> dict[str, float]:
    settings, device = config.eval, get_device(config.device)
    return prdc.precision_recall_density_coverage(
        *arrays, nearest_k=settings.nearest_k, block_bytes=settings.block_bytes, device=device
    )


def _prdc_package(config: ml_collections.ConfigDict, *arrays: Arrays) -> dict[str, float]:
    return prdc.prdc_package(*arrays, nearest_k=config.eval.nearest_k)


def _kid(config: ml_collections.ConfigDict, *arrays: Arrays) -> dict[str, float]:
    return kid.kernel_inception_distance(*arrays, subset_size=config.eval.kid_subset_size)


def _torch_fidelity_kid(config: ml_collections.ConfigDict, *arrays: Arrays) -> dict[str, float]:
    return kid.torch_fidelity_kid(*arrays, subset_size=config.eval.kid_subset_size)


# ---------------------------------------------------------------- the table

REAL, GENERATED = ("real", "pool"), ("generated", "pool")
LOGITS = ("generated", "logits")

SAMPLE_METRICS = (
    SampleMetric(
        name="fid_is",
        flag="fidis",
        help="FID and Inception score.",
        quantities=(Quantity("fid", "FID", "↓"), Quantity("is", "Inception score", "↑")),
        needs=(REAL, GENERATED, LOGITS),
        backends={OURS: _fidis, "tfgan": _tfgan_fidis},
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
        backends={OURS: _kid, "torch-fidelity": _torch_fidelity_kid},
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
        backends={OURS: _prdc, "prdc": _prdc_package},
        settings=("nearest_k",),
    ),
)

# What the samplers count while they draw, and what the likelihood's ODE takes.
NFE = Quantity("nfe", "NFE")

SCORE_METRICS = {
    "nll": ScoreMetric(
        name="nll",
        quantities=(
            Quantity("bits_per_dim", "NLL, bits/dim", "↓"),
            Quantity("nats", "NLL, nats", "↓"),
            Quantity("standard_error", "standard error of the NLL"),
            NFE,
        ),
    ),
    "asym": ScoreMetric(
        name="asym",
        quantities=(Quantity("asym", "Asym", "↓"), Quantity("nasym", "NAsym", "↓")),
    ),
}

ACCURACY = Quantity("accuracy", "accuracy", "↑")  # the classification accuracy score's

BACKENDS = tuple(dict.fromkeys(name for metric in SAMPLE_METRICS for name in metric.backends))
LABELS = {
    quantity.name: quantity.title
    for quantity in (
        *(quantity for metric in SAMPLE_METRICS for quantity in metric.quantities),
        *(quantity for metric in SCORE_METRICS.values() for quantity in metric.quantities),
        ACCURACY,
    )
}
