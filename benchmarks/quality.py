"""What the benchmarks of samplers share: trained models, samples of them, and how good these are.

Quality is measured on the demo's digits: FID, precision and recall of the data set's own features
against all training images, and the share of the samples that an independent classifier recognises
(demo/recognise.py). Every number is kept in ``metrics.json`` of the benchmark's workdir, and one
that stands is not measured again.
"""

import dataclasses
import json
import time
from collections.abc import Callable

import numpy as np
from absl import flags

import datasets
import domains
from demo.recognise import flatten, recogniser, share_of_sure
from metrics import encoding, extractors, frechet, prdc
from metrics.sample_sets import in_batches
from models.scores import InParts
from samplers.rounds import split_rounds
from storage import checkpoints
from storage.files import to_json
from storage.trained import load_score
from storage.workdir import Workdir
from utils import UserError, get_device, log

QUANTITIES = {  # name -> head of its column, digits behind the point, factor
    "seen": ("class seen ↑, %", 1, 100),
    "fid": ("FID ↓", 2, 1),
    "precision": ("precision ↑", 3, 1),
    "recall": ("recall ↑", 3, 1),
    "recognised": ("recognised ↑, %", 1, 100),
    "seconds": ("seconds", 1, 1),
}
USUAL = "fid", "precision", "recall", "recognised", "seconds"


def define_flags():
    """The flags --models and --seeds."""
    flags.DEFINE_multi_string("models", None, "NAME=WORKDIR of trained scores.", required=True)
    flags.DEFINE_integer("seeds", 3, "Draws of each.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Model:
    """A score, what it is called in tables, and the fingerprint of its weights."""

    name: str
    score: Callable
    weights: str


def open_model(config, sde, text):
    """The `Model` of "NAME=WORKDIR": the workdir's newest checkpoint, averaged weights.

    Whether it is an energy's gradient is what it was trained as.

    Raises:
        UserError: the text is not of that form, or there is no checkpoint that fits the config.
    """
    name, _, workdir = text.partition("=")
    if not workdir:
        raise UserError(f"--models has {text!r}; expected NAME=WORKDIR, such as U=demo.")
    path = Workdir(workdir).checkpoint()
    config = config.copy_and_resolve_references()
    trained = json.loads(checkpoints.read(path)["config"])
    config.model.energy = trained["model"]["energy"]
    score, loaded = load_score(config, path, sde, get_device(config.device))
    return Model(name, score, loaded.fingerprint)


def draw(sampler, score, config, of_round, of_images):
    """Samples as `run_lib_sampling.py` draws them, kept in memory.

    Args:
        sampler: of `sampling.from_config`, or a `FastSampler`.
        of_round, of_images: the streams of random numbers, see `run_lib_sampling.draw_rounds`.

    Returns:
        ``config.eval.num_samples`` images, uint8 (N, H, W, C); the mean NFE; the seconds it took.
    """
    device, domain = get_device(config.device), domains.from_config(config.data)
    score = InParts(score, config.eval.microbatch)
    parts, evaluations, start = [], 0, time.perf_counter()
    for each in split_rounds(config.eval.num_samples, config.eval.batch_size):
        stream = sampler.stream((*of_round, each.number), (*of_images, each.first))
        noise = sampler.noise(device, stream, each.count)
        latents = noise.randn((each.count, *domain.shape))
        x, nfe = sampler(score, latents, noise.randn_like)
        parts.append(domain.to_stored(x))
        evaluations += nfe * each.count
    samples = np.concatenate(parts)
    return samples, evaluations / len(samples), time.perf_counter() - start


def kept(place, name, settings, measure):
    """The numbers `name` of ``metrics.json``, else those of `measure()`, which are kept there.

    Numbers that stand with other `settings` are measured anew. A dict of floats.
    """
    settings = json.loads(to_json(settings))
    known = place.recorded().get(name, {})
    if known.get("settings") == settings:
        return known
    values = measure()
    log.info("%s: %s", name, {key: round(value, 4) for key, value in values.items()})
    place.record(**{name: {**values, "settings": settings}})
    return values


class Judge:
    """How good samples are: a call of uint8 images (N, H, W, C) gives a dict of floats."""

    def __init__(self, config):
        self.config = config
        self.extractor = encoding.open_extractor(config)
        train = datasets.load(config.data, "train")
        self.recogniser = recogniser(train)
        self.real = self.features(train.images.transpose(0, 2, 3, 1))

    def features(self, images):
        """Pooled features (N, D)."""
        batches = in_batches([images], self.config.eval.batch_size)
        return extractors.extract(self.extractor, batches, len(images))[0]

    def __call__(self, samples):
        pool, evaluation = self.features(samples), self.config.eval
        spheres = prdc.precision_recall_density_coverage(
            self.real, pool, evaluation.nearest_k, evaluation.block_bytes
        )
        probabilities = self.recogniser.predict_proba(flatten(samples))
        return {
            "fid": frechet.frechet_distance(self.real, pool),
            "precision": spheres["precision"],
            "recall": spheres["recall"],
            "recognised": float(share_of_sure(probabilities)),
        }


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Quality of samples of models by samplers, measured once and kept in a workdir."""

    config: object
    place: Workdir
    judge: Judge

    def __call__(self, name, model, sampler, settings, seed):
        """The numbers `name` of a sampler's draw from a `Model`: NFE, quality and seconds.

        `settings` is what makes the sampler what it is, and what numbers that stand are known by.
        """

        def measure():
            streams = ("division", seed, 0), ("image", seed)
            samples, nfe, seconds = draw(sampler, model.score, self.config, *streams)
            return {"nfe": nfe, **self.judge(samples), "seconds": seconds}

        settings = {
            **settings,
            "weights": model.weights,
            "samples": self.config.eval.num_samples,
            "seed": seed,
            "features": self.judge.extractor.name,
        }
        return kept(self.place, f"{name}, seed {seed}", settings, measure)


def mean_and_spread(rows, quantity):
    """Mean of a quantity over the seeds' dicts `rows`, and its standard deviation (0 for one)."""
    values = [row[quantity] for row in rows]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def cells(rows, quantities=USUAL):
    """A table's cells of the seeds' dicts `rows`: mean ± standard deviation of each quantity."""
    for quantity in quantities:
        _, digits, factor = QUANTITIES[quantity]
        mean, spread = (factor * value for value in mean_and_spread(rows, quantity))
        yield f"{mean:.{digits}f} ± {spread:.{digits}f}"


def heads(quantities=USUAL):
    """The heads of these cells."""
    return [QUANTITIES[quantity][0] for quantity in quantities]
