"""All evaluations that processes share out among themselves, of the tiny configurations.

Apart from the tests, so that processes have little to import.
"""

import tiny
import tiny_classifier
from commands import brief_features  # noqa: F401 (used by tests)

import evaluation
import run_lib_likelihood
from metrics import encoding, feature_sets
from storage.workdir import Workdir
from utils import is_first


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
    """Of the run W: all that is shared, and what comes after it."""
    config = score_config()
    run_lib_likelihood.calculate_nll(config, "W")
    run_lib_likelihood.calculate_asym(config, "W")
    encoding.encode_dataset(config, "W")
    encoding.encode_samples(config, "W")
    guided = tiny_classifier.config("guided", "cache", eval__batch_size=40)
    encoding.encode_dataset(guided, "W")
    encoding.encode_samples(guided, "W")
    if is_first():
        run_lib_likelihood.read_nll("W")
        run_lib_likelihood.read_asym("W")
        place, every = Workdir("W"), evaluation.SAMPLE_METRICS
        sets = feature_sets.open_sets(config, "W")
        evaluation.measure(every, config, *sets, place)
        evaluation.nfe(config, "W")
        sets = feature_sets.open_sets(guided, "W")
        evaluation.measure(every[:1], guided, *sets, place, mode="class")
        evaluation.nfe(guided, "W")


def encode_again():
    """Encode samples whose features stand."""
    encoding.encode_samples(score_config(), "W")
