"""Quality of samples against the number of evaluations, for every sampler.

    python -m studies.samplers --config configs/demo/digits.py --workdir demo --nfe 5 10 20 25 35

Draws ``config.eval.num_samples`` digits of the workdir's model by each of `samplers.fast.SAMPLERS`
in at most so many evaluations, and by predictor and corrector (PC) and the probability flow (RK45)
as configured, for each seed, as `run_lib_sampling.py` does. Prints FID, precision and recall of the
data set's own features against the training images, the share that an independent classifier
recognises (scripts/recognise.py), and seconds: mean ± standard deviation over seeds.
"""

import time

import numpy as np
from absl import flags

import cli
import datasets
import domains
import sampling
from metrics import encoding, extractors, frechet, prdc
from samplers import fast
from samplers.rounds import split_rounds
from scripts.recognise import flatten, recogniser, share_of_sure
from storage.trained import load_score
from storage.workdir import Workdir
from studies import common
from utils import get_device, lookup

REFERENCES = {"pc": "PC", "ode": "RK45"}  # method -> its name in tables


def steps_within(method, nfe):
    """The most steps of a `Method` that take at most `nfe` evaluations; 0 where all take more."""
    return max((count for count in range(1, nfe + 1) if method.nfe(count) <= nfe), default=0)


def settings_of(config, names, budgets):
    """Yields the name and ``config.sampling`` of each sampler and budget, the references last.

    Raises:
        UserError: there is no sampler of such a name.
    """
    for name in names:
        method = lookup(fast.SAMPLERS, name, "--samplers")
        for count in dict.fromkeys(steps_within(method, nfe) for nfe in budgets):
            settings = config.sampling.copy_and_resolve_references()
            settings.method, settings.steps = name, count
            if count:
                yield name, settings
    for method, name in REFERENCES.items():
        settings = config.sampling.copy_and_resolve_references()
        settings.method = method
        yield name, settings


def draw(sampler, score, config, seed):
    """Samples of a division as `run_lib_sampling.py` draws them with that seed.

    Returns:
        ``config.eval.num_samples`` images, uint8 (N, H, W, C); the mean NFE; the seconds it took.
    """
    device, domain = get_device(config.device), domains.from_config(config.data)
    parts, evaluations, start = [], 0, time.perf_counter()
    for each in split_rounds(0, config.eval.num_samples, config.eval.batch_size):
        of_round, of_images = ("division", seed, 0, each.number), ("image", seed, each.first)
        stream = sampler.stream(of_round, of_images)
        noise = sampler.noise(device, stream, each.count)
        x, nfe = sampler(score, noise.randn((each.count, *domain.shape)), noise.randn_like)
        parts.append(domain.to_stored(x))
        evaluations += nfe * each.count
    samples = np.concatenate(parts)
    return samples, evaluations / len(samples), time.perf_counter() - start


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
        settings = self.config.eval
        batches = extractors.batches_of(images, settings.batch_size)
        return extractors.extract(self.extractor, batches, settings.microbatch)[0]

    def __call__(self, samples):
        pool = self.features(samples)
        spheres = prdc.precision_recall_density_coverage(
            self.real, pool, self.config.eval.nearest_k
        )
        sure = share_of_sure(self.recogniser.predict_proba(flatten(samples)))
        return {
            "FID": frechet.frechet_distance(self.real, pool),
            "precision": spheres["precision"],
            "recall": spheres["recall"],
            "recognised": float(sure),
        }


def main():
    FLAGS = flags.FLAGS
    path = Workdir(FLAGS.workdir).checkpoint()
    trained = load_score(FLAGS.config, path, get_device(FLAGS.config.device))
    config, sde, score = trained.config, trained.sde, trained.score
    judge = Judge(config)
    results = {}
    for name, settings in settings_of(config, FLAGS.samplers, sorted(FLAGS.nfe)):
        sampler = sampling.from_config(settings, sde)
        for seed in FLAGS.seeds:
            samples, nfe, seconds = draw(sampler, score, config, seed)
            numbers = {"NFE": nfe, **judge(samples), "seconds": seconds}
            results.setdefault(f"{name}, {settings.steps} steps", []).append(numbers)
    common.print_seeds("sampler", results)


if __name__ == "__main__":
    cli.define_common_flags()
    common.define_seeds([0, 1, 2])
    flags.DEFINE_multi_string("samplers", list(fast.SAMPLERS), "Names of fast samplers.")
    flags.DEFINE_multi_integer("nfe", [5, 10, 20, 35], "Most evaluations of a sample.")
    cli.launch(main, pairs=("samplers", "nfe", "seeds"))
