"""All evaluations and draws that processes share out among themselves, of the tiny configurations.

Apart from the tests, so that processes have little to import.
"""

import functools
import types

import tiny
import tiny_classifier

import run_lib_evaluation
import run_lib_sampling
from metrics import encoding, feature_classifier

ASKED_FOR = "calculate read encode encode_dataset stat latent fidis prdc kid nfe"


def brief_features():
    """Train the classifier of features for three steps only: it need not be good."""
    feature_classifier.train_small_classifier = functools.partial(
        feature_classifier.train_small_classifier, steps=3
    )


def score_config():
    return tiny.config(
        "cache",
        eval__batch_size=150,
        eval__noise_levels=2,
        eval__total_repeat=2,
        eval__atol=0.5,
        eval__rtol=0.5,
        eval__kid_subset_size=20,
    )


def evaluate():
    """Of the run W: all that is shared, and in the same commands what comes after it."""
    flags = types.SimpleNamespace(
        workdir="W", ema=False, dataset_stat=None, mode="full", backend="ours", sets=1
    )
    vars(flags).update(dict.fromkeys(ASKED_FOR.split(), True))
    for flags.metric in ("nll", "asym"):
        run_lib_evaluation.score_metric(score_config(), flags)
    run_lib_evaluation.sample_metrics_of(score_config(), flags)
    flags.mode, flags.prdc, flags.kid = "class", False, False
    config = tiny_classifier.config("guided", "cache", eval__batch_size=40)
    run_lib_evaluation.class_sample_metrics(config, flags)


def encode_again():
    """Encode samples whose features stand."""
    encoding.encode_samples(score_config(), "W")


def draw_fast():
    """Samples of the run W by a deterministic and a stochastic fast sampler, five rounds each."""
    for method, steps in (("unipc", 3), ("churn", 2)):
        config = tiny.config("cache", sampling__method=method, sampling__steps=steps)
        config.eval.batch_size, config.eval.num_samples, config.eval.num_divisions = 4, 18, 2
        run_lib_sampling.sample(config, "W")
