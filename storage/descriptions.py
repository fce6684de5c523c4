"""The configuration in a checkpoint, which determines network, SDE and scaling of the data.

The command's configuration determines the rest: sampling, evaluation, device, precision, data set.
Published files hold no configuration; for them the command's determines all.
"""

import copy
import os
from collections.abc import Collection
from typing import Any

import ml_collections

from storage import settings
from utils import UserError, flatten, log

# Fields of other sections than `model` and `classifier` that a network, SDE or scaling depends on.
OTHER_SECTIONS = {
    *("data.image_size", "data.image_width", "data.num_channels", "data.dimensions"),
    *("data.centered", "training.sde", "training.continuous"),
}
# Fields of `model` that are paths or belong to the training of a classifier.
NOT_OF_THE_MODEL = {
    *("model.score_restore_path", "model.classifier_restore_path", "model.pretrained"),
    *("model.loss_type", "model.weighting_dlsm", "model.weighting_ce", "model.coef"),
}
# Fields of the command's configuration where a run starts from another run's checkpoint.
OF_A_TRAINING = {"model.ema_rate", "model.dropout", "model.energy", "model.num_classes"}
# Models that differ in one of these are of different kinds.
KIND = {"model.name", "model.energy", "training.sde", "training.continuous", "data.dimensions"}


def is_of_the_model(field: str) -> bool:
    """Whether the checkpoint determines the value of `field`, such as ``model.nf``."""
    of_a_network = field.startswith(("model.", "classifier.")) and field not in NOT_OF_THE_MODEL
    return of_a_network or field in OTHER_SECTIONS


def model_fields(before: dict[str, Any] | None, keep: Collection[str] = ()) -> dict[str, Any]:
    """The fields that a checkpoint's configuration `before` determines, except those in `keep`."""
    fields = flatten(before or {})
    return {n: _as_tuple(v) for n, v in fields.items() if is_of_the_model(n) and n not in keep}


def adopt(
    config: ml_collections.ConfigDict,
    before: dict[str, Any] | None,
    path: str | os.PathLike,
    keep: Collection[str] = (),
    fixed: Collection[str] = (),
) -> ml_collections.ConfigDict:
    """A copy of `config` with the network, SDE and scaling of the checkpoint at `path`.

    Args:
        before: the configuration in the checkpoint; None: it holds none, and nothing changes.
        keep: fields whose value remains that of `config`.
        fixed: fields that must agree, such as those set on the command line.

    Raises:
        UserError: a field in `fixed` differs, or one that makes it another kind of model.
    """
    config, decided = copy.deepcopy(config), model_fields(before, keep)
    old = flatten(config.to_dict())
    changed = [n for n, value in decided.items() if _as_tuple(old.get(n)) != value]
    for name in changed:
        if name in KIND or name in fixed:
            raise UserError(
                f"config.{name} is {old.get(name)}, but {path} was trained with {decided[name]}. "
                "Do not override it, or give a configuration and a checkpoint of the same kind."
            )
    if changed:
        log.info(
            "From the checkpoint %s: %s.", path, ", ".join(f"{n} {decided[n]}" for n in changed)
        )
    with config.unlocked(), config.ignore_type():
        for name in changed:
            section, _, field = name.partition(".")
            if section in config:  # a class-conditional score has no section `classifier`
                config[section][field] = decided[name]
    settings.check(config)
    return config


def identity(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Fields recorded with samples and likelihoods, where they differ from the defaults."""
    found = {
        "energy": config.model.energy,
        "centered": config.data.get("centered", False),
        "discrete": not config.training.continuous,
        "precision": config.compute.precision if config.compute.precision != "fp32" else None,
    }
    return {name: value for name, value in found.items() if value}


def _as_tuple(value: object) -> object:
    """A list as a tuple: JSON has lists only, and configurations have tuples."""
    return tuple(value) if isinstance(value, list) else value
