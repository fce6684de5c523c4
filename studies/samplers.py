"""Quality of samples against the number of evaluations, for every sampler.

    python -m studies.samplers --config configs/demo/digits.py --workdir demo --nfe 5 10 20 25 35

Draws ``config.eval.num_samples`` digits from the workdir's model with each sampler of
`samplers.fast.SAMPLERS` in at most --nfe evaluations, and with predictor-corrector (PC) and the
probability flow (RK45) as configured, for each seed, under results/NAME/samplers. Prints FID,
precision and recall of the configured features against the training images, and the share that an
independent classifier recognises (scripts/recognise.py): mean ± standard deviation over seeds.
"""

import itertools

import numpy as np
import torch
from absl import flags

import cli
import datasets
import domains
import sampling
from metrics import encoding, extractors, frechet, prdc
from metrics.sample_sets import find_samples, mean_nfe
from run_lib_sampling import sample
from samplers import fast
from scripts.recognise import flatten, recogniser, share_of_sure
from sde_lib import VESDE
from storage.workdir import Workdir
from studies import common

REFERENCES = {"pc": "PC", "ode": "RK45"}  # method -> its name in tables


def steps_within(settings, nfe):
    """The most steps of ``config.sampling`` in at most `nfe` evaluations; 0 where all take more."""
    for count in range(nfe, 0, -1):
        settings.steps = count
        sampler = sampling.from_config(settings, VESDE())
        if sampler(lambda x, t: -x, torch.ones(1, 1))[1] <= nfe:
            return count
    return 0


def configurations(config, names, budgets):
    """The row and configuration of each sampler and budget; references have none: a dict."""
    chosen = {}
    for name in names:
        if name in REFERENCES:
            chosen[REFERENCES[name]] = {"sampling.method": name}
            continue
        settings = config.sampling.copy_and_resolve_references()
        settings.method = name
        for steps in sorted({steps_within(settings, nfe) for nfe in budgets} - {0}):
            changed = {"sampling.method": name, "sampling.steps": steps}
            chosen[f"{name}, {steps} steps"] = changed
    result = {row: config.copy_and_resolve_references() for row in chosen}
    for row, changed in chosen.items():
        result[row].update_from_flattened_dict(changed)
    return result


def draw(config, workdir):
    """The samples, uint8 (N, H, W, C), that `run_lib_sampling.py` draws in `workdir`; their NFE."""
    sample(config, workdir)
    rounds = list(itertools.chain.from_iterable(find_samples(config, Workdir(workdir))))
    return np.concatenate([each.read() for each in rounds]), mean_nfe(rounds)


class Judge:
    """Metrics of samples: a call on uint8 images (N, H, W, C) returns a dict of floats."""

    def __init__(self, config):
        self.config = config
        self.extractor = encoding.open_extractor(config)
        train = datasets.load(config.data, "train")
        self.recogniser = recogniser(train)
        self.real = self.features(domains.channels_last(train.images))

    def features(self, images):
        """Pooled features (N, D)."""
        return extractors.encode(self.extractor, images, self.config.eval.microbatch)[0]

    def __call__(self, samples):
        pool = self.features(samples)
        nearest_k = self.config.eval.nearest_k
        spheres = prdc.precision_recall_density_coverage(self.real, pool, nearest_k)
        sure = share_of_sure(self.recogniser.predict_proba(flatten(samples)))
        return {
            "FID": frechet.frechet_distance(self.real, pool),
            "precision": spheres["precision"],
            "recall": spheres["recall"],
            "recognised": float(sure),
        }


def main():
    FLAGS = flags.FLAGS
    judge, place, results = Judge(FLAGS.config), Workdir(FLAGS.workdir), {}
    for row, config in configurations(FLAGS.config, FLAGS.samplers, FLAGS.nfe).items():
        config.model.score_restore_path = str(place.checkpoint())
        config.eval.num_divisions = 1
        name = row.replace(", ", "-").replace(" ", "-")
        for seed in FLAGS.seeds:
            config.seed = seed
            samples, nfe = draw(config, f"{FLAGS.workdir}/samplers/{name}-seed{seed}")
            results.setdefault(row, []).append({"NFE": nfe, **judge(samples)})
    common.print_seeds("sampler", results)


if __name__ == "__main__":
    cli.define_common_flags()
    common.define_seeds([0, 1, 2])
    every = [*fast.SAMPLERS, *REFERENCES]
    flags.DEFINE_multi_enum("samplers", every, every, "Names of samplers.")
    flags.DEFINE_multi_integer("nfe", [5, 10, 20, 35], "Most evaluations of a sample.")
    cli.launch(main, lists=("samplers", "nfe", "seeds"))
