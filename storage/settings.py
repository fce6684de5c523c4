"""What a configuration means: the ranges of its numbers, and which kind of model it describes.

Names and choices are checked where they are looked up; types by ml_collections. The upper ends of
ranges are far beyond any use: they prevent a typing error from filling the memory.
"""

import math

import ml_collections

from utils import UserError, require_positive


def _whole(least, most):
    def fits(value):
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return fits, f"a whole number from {least} to {most}"


def _real(least, most=math.inf, *, above=False):
    """From `least` (or only above it) to `most`; below infinity."""

    def fits(value):
        is_real = isinstance(value, int | float) and math.isfinite(value)
        return is_real and (value > least if above else value >= least) and value <= most

    limit = f"above {least}" if above else f"of at least {least}"
    return fits, f"a number {limit}" + ("" if most == math.inf else f" and at most {most}")


def _optional(rule):
    fits, text = rule
    return (lambda value: value is None or fits(value)), text


def _several(rule, at_least):
    fits, text = rule

    def all_fit(values):
        return len(values) >= at_least and all(fits(value) for value in values)

    return all_fit, f"{at_least} or more, each {text}"


STEPS = _whole(1, 10**12)
BATCH = _whole(1, 2**20)
WIDTH = _whole(1, 4096)
TOLERANCE = _real(0, 1, above=True)
POSITIVE = _real(0, 1e6, above=True)
NOT_NEGATIVE = _real(0, 1e6)
SHARE = _real(0, 1)

RANGES = {
    "seed": _whole(0, 2**63 - 1),
    "data.image_size": WIDTH,
    "data.image_width": _optional(WIDTH),
    "data.num_channels": WIDTH,
    "data.dimensions": WIDTH,
    "data.num_points": _whole(1, 10**8),
    "data.data_seed": _whole(0, 2**63 - 1),
    "model.sigma_min": POSITIVE,
    "model.sigma_max": POSITIVE,
    "model.beta_min": POSITIVE,
    "model.beta_max": POSITIVE,
    "model.num_scales": _whole(2, 10**6),
    "model.nf": WIDTH,
    "model.ch_mult": _several(_whole(1, 64), at_least=1),
    "model.num_res_blocks": _whole(1, 100),
    "model.attn_resolutions": _several(WIDTH, at_least=0),
    "model.dropout": _real(0, 0.999),
    "model.patch_size": _whole(1, 256),
    "model.width": _whole(1, 8192),
    "model.depth": _whole(1, 200),
    "model.heads": _whole(1, 128),
    "model.mlp_ratio": _whole(1, 32),
    "model.num_classes": _optional(_whole(1, 10**6)),
    "model.fourier_scale": POSITIVE,
    "model.fir_kernel": _several(_real(0, 1e6, above=True), at_least=1),
    "model.init_scale": NOT_NEGATIVE,
    "model.ema_rate": SHARE,
    "model.weighting_dlsm": _real(-10, 10),
    "model.weighting_ce": _real(-10, 10),
    "model.coef": NOT_NEGATIVE,
    "classifier.classes": _whole(1, 10**6),
    "classifier.nf": WIDTH,
    "classifier.fourier_scale": POSITIVE,
    "optim.lr": NOT_NEGATIVE,
    "optim.beta1": _real(0, 0.9999),
    "optim.eps": _real(0, 1, above=True),
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.warmup": _whole(0, 10**12),
    "optim.grad_clip": POSITIVE,
    "training.batch_size": BATCH,
    "training.microbatch": _optional(BATCH),
    "training.n_iters": STEPS,
    "training.log_freq": STEPS,
    "training.eval_freq": STEPS,
    "training.snapshot_freq": STEPS,
    "training.snapshot_freq_for_preemption": STEPS,
    "training.init_step": _whole(0, 10**12),
    "training.label_dropout": SHARE,
    "training.eps": _real(0, 0.999, above=True),
    "loss.slices": _whole(1, 10**4),
    "loss.balancing_fac": NOT_NEGATIVE,
    "sampling.batch_size": BATCH,
    "sampling.num_scales": _optional(_whole(2, 10**6)),
    "sampling.steps": _whole(1, 10**6),
    "sampling.guidance_interval": _several(NOT_NEGATIVE, at_least=0),
    "sampling.snr": NOT_NEGATIVE,
    "sampling.n_steps_each": _whole(1, 1000),
    "sampling.last_step_snr": NOT_NEGATIVE,
    "sampling.scaling_factor": _real(-1e6, 1e6),
    "sampling.atol": TOLERANCE,
    "sampling.rtol": TOLERANCE,
    "sampling.max_nfe": STEPS,
    "eval.batch_size": BATCH,
    "eval.num_samples": _whole(1, 10**8),
    "eval.num_samples_all": _whole(1, 10**8),
    "eval.num_divisions": _whole(1, 10**5),
    "eval.checkpoint_idx": _optional(_whole(0, 10**12)),
    "eval.noise_levels": _whole(1, 10**5),
    "eval.total_repeat": _whole(1, 10**5),
    "eval.batch_splits": _whole(1, 10**5),
    "eval.nearest_k": _whole(1, 10**5),
    "eval.kid_subset_size": _whole(2, 10**6),
    "eval.block_bytes": _whole(2**20, 2**40),
    "eval.microbatch": BATCH,
    "eval.atol": TOLERANCE,
    "eval.rtol": TOLERANCE,
    "eval.max_nfe": STEPS,
}


def check(config: ml_collections.ConfigDict) -> None:
    """Raise a UserError for the first number of `config` that is out of its range."""
    for name, (fits, text) in RANGES.items():
        section, _, field = name.rpartition(".")
        group = config.get(section, {}) if section else config
        if field in group and not fits(group[field]):
            raise UserError(f"config.{name} is {group[field]!r}; expected {text}.")
    for section, low, high in (
        ("model", "sigma_min", "sigma_max"),
        ("model", "beta_min", "beta_max"),
    ):
        if not config[section][low] < config[section][high]:
            raise UserError(
                f"config.{section}.{low} is {config[section][low]}; expected less than {high}, "
                f"{config[section][high]}."
            )


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
    """How many classes the classifier tells apart, or else the class-conditional score.

    Raises:
        UserError: none.
    """
    if describes_classifier(config):
        return require_positive(config.classifier.classes, "config.classifier.classes")
    return require_positive(config.model.get("num_classes"), "config.model.num_classes")
