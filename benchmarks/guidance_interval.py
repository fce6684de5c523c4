"""Guidance at some noise levels alone: is the class there, and what does it cost?

    python -m benchmarks.guidance_interval --config configs/demo/digits_guided.py \\
        --workdir guidance_interval --restore_classifier \\
        results/classifier_digits_base_resnet_small_cond/checkpoints/checkpoint.pth

Draws ``config.eval.num_samples`` digits of each class by each sampler in at most so many
evaluations of the score, guided everywhere and within each interval (σ_lo, σ_hi) alone
(Kynkäänniemi et al. 2024), for each seed. Prints a Markdown table: the share in which an
independent classifier sees the class that was asked for, the usual quality of all of them, and how
often the guiding classifier was asked for a sample. Run again, it goes on; see `quality`.
"""

import ast
import dataclasses
import functools

import numpy as np
import torch
from absl import flags

import cli
import sampling
import sde_lib
from benchmarks import quality
from benchmarks.samplers import steps_within
from demo.recognise import flatten
from experiments import common
from models.scores import GuidedScore
from samplers import fast
from samplers.rounds import split_rounds
from storage.trained import load_classifier, load_score
from storage.workdir import Workdir
from utils import UserError, get_device, lookup

QUANTITIES = "seen", *quality.USUAL


@dataclasses.dataclass(frozen=True)
class Guidance:
    """The score and the classifier that guides it, and the fingerprints of their weights."""

    config: object
    sde: sde_lib.SDE
    score: object
    classifier: object
    weights: tuple

    @classmethod
    def open(cls, config, classifier_path):
        """The score of ``model.score_restore_path`` and the classifier of a checkpoint.

        Raises:
            UserError: one of them is missing or does not fit the config.
        """
        device, sde = get_device(config.device), sde_lib.from_config(config)
        score, score_from = load_score(config, config.model.score_restore_path, sde, device)
        classifier, classifier_from = load_classifier(config, classifier_path, device)
        weights = score_from.fingerprint, classifier_from.fingerprint
        return cls(config, sde, score, classifier, weights)

    def measure(self, judge, sampler, seed):
        """Quality of samples of all classes: `seen`, what `judge` says, NFE, costs; a dict."""
        asked = sampling.CountedScore(self.classifier)
        every, hits, seconds, nfe = [], [], 0.0, 0.0
        for label in range(self.config.classifier.classes):
            labels = torch.tensor([label], device=get_device(self.config.device))
            scale = self.config.sampling.scaling_factor
            guided = GuidedScore(self.score, asked, self.sde, labels, scale)
            streams = ("class", seed, label), ("class image", seed, label)
            images, nfe, took = quality.draw(sampler, guided, self.config, *streams)
            hits.append(judge.recogniser.predict(flatten(images)) == label)
            every.append(images)
            seconds += took
        evaluation = self.config.eval
        rounds = split_rounds(evaluation.num_samples, evaluation.batch_size)
        return {
            "nfe": nfe,
            "classifier_nfe": asked.nfe / (len(every) * len(rounds)),
            "seen": float(np.mean(hits)),
            **judge(np.concatenate(every)),
            "seconds": seconds,
        }


def settings_of(config, names, budgets, intervals):
    """``config.sampling`` of each sampler, budget and interval; () is no interval."""
    for name in names:
        method = lookup(fast.SAMPLERS, name, "--samplers")
        for nfe in budgets:
            for interval in ((), *intervals):
                settings = config.sampling.copy_and_resolve_references()
                settings.method, settings.steps = name, steps_within(method, nfe)
                settings.guidance_interval = interval
                if settings.steps:
                    yield settings


def read_interval(text):
    """Two floats of "(0.1, 2.0)".

    Raises:
        UserError: it is not of that form.
    """
    try:
        low, high = ast.literal_eval(text)
        return float(low), float(high)
    except (ValueError, TypeError, SyntaxError):
        raise UserError(f"--interval is {text!r}; expected two noise levels: (0.1, 2.0).") from None


def main():
    FLAGS = flags.FLAGS
    config = FLAGS.config
    guidance = Guidance.open(config, FLAGS.restore_classifier)
    place = Workdir(FLAGS.workdir)
    place.create()
    judge = quality.Judge(config)
    budgets = sorted(FLAGS.nfe)
    intervals = list(map(read_interval, FLAGS.interval))
    rows = []
    for chosen in settings_of(config, FLAGS.samplers, budgets, intervals):
        sampler = sampling.from_config(chosen, guidance.sde)
        where = "everywhere" if not chosen.guidance_interval else str(chosen.guidance_interval)
        each = []
        for seed in range(FLAGS.seeds):
            name = f"{chosen.method}, {chosen.steps} steps, guided {where}, seed {seed}"
            settings = {
                **sampling.settings(chosen),
                "weights": guidance.weights,
                "samples": config.eval.num_samples,
                "seed": seed,
                "features": judge.extractor.name,
            }
            measure = functools.partial(guidance.measure, judge, sampler, seed)
            each.append(quality.kept(place, name, settings, measure))
        counts = [
            f"{quality.mean_and_spread(each, key)[0]:.0f}" for key in ("nfe", "classifier_nfe")
        ]
        rows.append([chosen.method, where, *counts, *quality.cells(each, QUANTITIES)])
    heads = ["sampler", "guided at σ", "NFE", "classifier's NFE"]
    common.print_table([*heads, *quality.heads(QUANTITIES)], rows)


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_string("restore_classifier", None, "Checkpoint of the classifier.", required=True)
    flags.DEFINE_multi_string("samplers", ["heun", "dpmpp_2m", "churn"], "Names of fast samplers.")
    flags.DEFINE_multi_integer("nfe", [10, 20, 35], "Most evaluations of a sample.")
    flags.DEFINE_multi_string("interval", ["(0.1, 2.0)"], "Noise levels between which it guides.")
    flags.DEFINE_integer("seeds", 3, "Draws of each.", lower_bound=1)
    cli.launch(main, pairs=("samplers", "nfe", "interval"))
