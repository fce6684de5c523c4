"""Checks of a configuration: the ranges of its numbers, and the kind of model it describes.

Names and choices are checked where they are looked up; types by ml_collections.
"""

import math

import ml_collections

from utils import UserError, flatten

# The least value of an integer, where that is not 1.
LEAST = {
    **dict.fromkeys(("seed", "data.data_seed", "optim.warmup", "training.init_step"), 0),
    "eval.checkpoint_idx": 0,
    **dict.fromkeys(("model.num_scales", "sampling.num_scales", "eval.kid_subset_size"), 2),
}
# Floats above 0, of at least 0, and from 0 to below 1. Any other one has to be finite.
POSITIVE = {
    *("model.sigma_min", "model.sigma_max", "model.beta_min", "model.beta_max"),
    *("model.fourier_scale", "classifier.fourier_scale", "optim.eps", "optim.grad_clip"),
    *("model.sigma_data", "training.log_sigma_std"),
    *("sampling.atol", "sampling.rtol", "eval.atol", "eval.rtol", "training.eps"),
}
NOT_NEGATIVE = {
    *("model.init_scale", "model.coef", "optim.lr", "optim.weight_decay", "loss.balancing_fac"),
    *("sampling.snr", "sampling.last_step_snr", "sampling.guidance_interval"),
}
SHARE = {"data.holdout", "model.dropout", "model.ema_rate", "optim.beta1", "training.label_dropout"}
INCREASING = (("sigma_min", "sigma_max"), ("beta_min", "beta_max"))


def check(config: ml_collections.ConfigDict) -> None:
    """Raise a UserError for the first number of `config` that is out of its range."""
    for name, value in flatten(config.to_dict()).items():
        for number in value if isinstance(value, tuple) else (value,):
            fits, expected = _range(name, number)
            if not fits:
                raise UserError(f"config.{name} is {value!r}; expected {expected}.")
    for low, high in INCREASING:
        if not config.model[low] < config.model[high]:
            raise UserError(
                f"config.model.{low} is {config.model[low]}; expected less than {high}, "
                f"{config.model[high]}."
            )


def _range(name, value):
    """Whether a number is within its range, and the range as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True, ""
    if name in POSITIVE:
        return 0 < value < math.inf, "a number above 0"
    if name in NOT_NEGATIVE:
        return 0 <= value < math.inf, "a number of at least 0"
    if name in SHARE:
        return 0 <= value < 1, "a number from 0 to below 1"
    if isinstance(value, int):
        least = LEAST.get(name, 1)
        return value >= least, f"a whole number of at least {least}"
    return math.isfinite(value), "a finite number"


def describes_classifier(config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration is DLSM's, of a score model guided by a classifier, and not QC's."""
    return "classifier" in config


def describes_cas(config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration is of a classification accuracy score."""
    return "cas" in config


def draws_by_class(config: ml_collections.ConfigDict) -> bool:
    """Whether samples are drawn class by class: by a classifier, or a class-conditional score."""
    return describes_classifier(config) or bool(config.model.get("num_classes"))


def number_of_classes(config: ml_collections.ConfigDict) -> int:
    """The number of classes of the classifier, or else of the class-conditional score."""
    if describes_classifier(config):
        return config.classifier.classes
    return config.model.num_classes
