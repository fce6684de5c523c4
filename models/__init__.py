"""Registries of the score networks and of the noise-conditioned classifiers."""

import functools
from collections.abc import Callable

import ml_collections
import torch

import sde_lib
from models.diffusers_unet import DiffusersUNet
from models.edm import EDM
from models.ncsnpp import NCSNpp, NCSNppMod
from models.points import MoonsClassifier, MoonsNet, PlaneNet
from models.resnet import NoiseConditionedResNet
from models.scores import EnergyScore, Score
from utils import UserError, lookup

MODELS = {
    "ncsnpp": NCSNpp.from_config,
    "ncsnpp_mod": NCSNppMod.from_config,
    "diffusers": DiffusersUNet.from_config,
    "plane": PlaneNet.from_config,
    "moons": MoonsNet.from_config,
}
"""``config.model.name`` -> a function of the configuration that builds the network."""

PRECONDITIONINGS = {"edm": EDM.from_config}
"""``config.model.preconditioning`` -> a function of (network, config) that wraps it."""

RESNET = NoiseConditionedResNet.from_config

CLASSIFIERS = {
    "resnet18_cond": functools.partial(RESNET, blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512)),
    "resnet34_cond": functools.partial(RESNET, blocks=(3, 4, 6, 3), widths=(64, 128, 256, 512)),
    # For images much smaller than CIFAR's.
    "resnet_small_cond": functools.partial(RESNET, blocks=(1, 1, 1), widths=(32, 64, 128)),
    "moons": MoonsClassifier.from_config,
}
"""``config.classifier.model`` -> a function of the configuration that builds the network."""


def create_model(config: ml_collections.ConfigDict) -> torch.nn.Module:
    """The freshly initialised score network that ``config.model.name`` names.

    Raises:
        UserError: the name or one of the network's options is unknown, it takes no labels, or its
            output is divided by the condition under EDM's preconditioning.
    """
    network = lookup(MODELS, config.model.name, "config.model.name")(config)
    if config.model.get("num_classes") and not getattr(network, "takes_labels", False):
        raise UserError(
            f"config.model.num_classes is {config.model.num_classes}, but the model "
            f"{config.model.name} takes no labels; leave it out, or use ncsnpp."
        )
    name = config.model.get("preconditioning")
    if name is None:
        return network
    if name == "edm" and config.model.get("scale_by_sigma"):
        raise UserError(
            "config.model.scale_by_sigma divides the network's output by its condition, which "
            "config.model.preconditioning=edm does not allow; set it to False."
        )
    return lookup(PRECONDITIONINGS, name, "config.model.preconditioning")(network, config)


def create_classifier(config: ml_collections.ConfigDict) -> torch.nn.Module:
    """The freshly initialised classifier that ``config.classifier.model`` names.

    Raises:
        UserError: the name is unknown.
    """
    return lookup(CLASSIFIERS, config.classifier.model, "config.classifier.model")(config)


def create_score(config: ml_collections.ConfigDict, network: Callable, sde: sde_lib.SDE) -> Score:
    """The score that ``config.model`` describes, of a network that takes x and a condition.

    Raises:
        UserError: an energy or a preconditioning without the continuous VE SDE, or an embedding
            that does not fit the VE SDE's condition.
    """
    continuous = config.training.continuous
    for field in ("energy", "preconditioning"):
        if config.model.get(field) and not (isinstance(sde, sde_lib.VESDE) and continuous):
            raise UserError(
                f"config.model.{field} needs the continuous VE SDE (training.sde=vesde)."
            )
    embedding = config.model.get("embedding_type")
    needed = "fourier" if continuous else "positional"
    if isinstance(sde, sde_lib.VESDE) and embedding not in (None, needed):
        raise UserError(
            f"config.model.embedding_type is {embedding!r}, but the VE SDE needs {needed!r} with "
            f"config.training.continuous={continuous}."
        )
    return EnergyScore(network, sde) if config.model.energy else Score(network, sde, continuous)
