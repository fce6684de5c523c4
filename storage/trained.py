"""Networks as a training run left them: the score and the classifier of a checkpoint."""

import dataclasses
import functools
import os
from collections.abc import Callable

import ml_collections
import torch

import models
from configs.classes import describes_classifier
from models import compute
from models.ema import EMA
from models.scores import ClassifierFreeScore, EnergyScore, GuidedScore, Score
from sde_lib import SDE
from storage import checkpoints


@dataclasses.dataclass(frozen=True)
class LoadedFrom:
    """Which weights a network was loaded from: their step, if the file has one, and a hash."""

    step: int | None
    fingerprint: str


def load_score(
    config: ml_collections.ConfigDict,
    path: str | os.PathLike,
    sde: SDE,
    device: torch.device,
    use_ema: bool = True,
) -> tuple[Score | EnergyScore, LoadedFrom]:
    """The score of the checkpoint at `path`, in eval mode, with averaged or raw weights.

    Returns:
        The score and a `LoadedFrom`.

    Raises:
        UserError: the checkpoint is missing or does not fit the configuration.
    """
    network = models.create_model(config)
    content = checkpoints.read(path)
    checkpoints.require_kind(content, path, "score model")
    checkpoints.load_model(network, content, path, config)
    if use_ema:
        ema = EMA(network.parameters(), config.model.ema_rate)
        checkpoints.load_ema(ema, content, path)
        ema.copy_to_parameters()
    step = checkpoints.read_count(content, "step", path)
    loaded = LoadedFrom(step, checkpoints.fingerprint(network.parameters()))
    compute.freeze(network, config.compute, device)
    return models.create_score(config, network, sde), loaded


def load_classifier(
    config: ml_collections.ConfigDict, path: str | os.PathLike, device: torch.device
) -> tuple[torch.nn.Module, LoadedFrom]:
    """The classifier of the checkpoint at `path`, in eval mode.

    Returns:
        The network and a `LoadedFrom`.

    Raises:
        UserError: the checkpoint is missing or does not fit the configuration.
    """
    network = models.create_classifier(config)
    content = checkpoints.read(path)
    checkpoints.require_kind(content, path, "classifier")
    checkpoints.load_model(network, content, path, config)
    step = checkpoints.read_count(content, "step", path)
    loaded = LoadedFrom(step, checkpoints.fingerprint(network.state_dict().values()))
    return compute.freeze(network, config.compute, device), loaded


def load_guidance(
    config: ml_collections.ConfigDict, own: str | os.PathLike, sde: SDE, device: torch.device
) -> tuple[Callable, dict[str, int | str | None]]:
    """The guidance of class-wise sampling: by a classifier, or a class-conditional score's own.

    Args:
        own: the workdir's checkpoint, the classifier's or the score's unless ``config.model`` names
            another.

    Returns:
        A function of the labels and the scale, ``guidance(labels=, scale=)``, to a score; and the
        steps and fingerprints of what was loaded, a dict.

    Raises:
        UserError: a checkpoint is missing or does not fit the configuration.
    """
    model = config.model
    by_classifier = describes_classifier(config)
    path = model.score_restore_path if by_classifier else model.score_restore_path or own
    score, loaded = load_score(config, path, sde, device)
    made_of = {"score_step": loaded.step, "score_weights": loaded.fingerprint}
    if not by_classifier:
        return functools.partial(ClassifierFreeScore, score), made_of
    classifier, loaded = load_classifier(config, model.classifier_restore_path or own, device)
    made_of |= {"classifier_step": loaded.step, "classifier_weights": loaded.fingerprint}
    return functools.partial(GuidedScore, score, classifier, sde), made_of
