"""Loads the score and the classifier of a checkpoint.

They are built from the configuration in the checkpoint, see `storage.descriptions`.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator

import ml_collections
import torch

import models
import sde_lib
from models import compute
from models.scores import ClassifierFreeScore, EnergyScore, GuidedScore, Score
from sde_lib import SDE
from storage import checkpoints, descriptions, pipelines
from storage.ema import EMA
from storage.settings import describes_classifier
from storage.workdir import Workdir
from utils import UserError, get_device, log

# What a classifier and the score model that it guides must have in common.
SHARED_DATA = ("data.centered", "data.image_size", "data.image_width", "data.num_channels")


@dataclasses.dataclass(frozen=True)
class LoadedFrom:
    """Which weights a network was loaded from.

    Attributes:
        checkpoint: the name of the file.
        step: None for a published file that does not record it.
        fingerprint: a short hash of the weights.
        ema: whether they are the EMA weights; None: the file holds no averages.
        class_names: of the data that they were trained on; empty if the file does not record them.
    """

    checkpoint: str
    step: int | None
    fingerprint: str
    ema: bool | None = False
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = {True: "EMA weights", False: "raw weights", None: "weights"}[self.ema]
        step = "a checkpoint without a step" if self.step is None else f"step {self.step}"
        return f"{kind} of {step} ({self.checkpoint})"


@dataclasses.dataclass(frozen=True)
class TrainedScore:
    """A score, and the settings in its checkpoint.

    Attributes:
        score: in eval mode, without gradients of its parameters.
        sde: the SDE that it was trained with.
        config: the command's configuration with the checkpoint's network, SDE and scaling.
    """

    score: Score | EnergyScore
    sde: SDE
    config: ml_collections.ConfigDict
    loaded: LoadedFrom


def load_score(
    config: ml_collections.ConfigDict,
    path: str | os.PathLike,
    device: torch.device,
    use_ema: bool = True,
) -> TrainedScore:
    """The score of the checkpoint at `path`, with EMA or raw weights.

    Raises:
        UserError: the checkpoint is missing, or of another kind of model than the configuration.
    """
    content = checkpoints.read(path)
    checkpoints.require_kind(content, path, "score model")
    config = descriptions.adopt(config, checkpoints.config_of(content), path)
    sde = sde_lib.from_config(config)
    network = models.create_model(config)
    checkpoints.load_model(network, content, path)
    if use_ema:
        ema = EMA(network.parameters(), config.model.ema_rate)
        checkpoints.load_ema(ema, content, path)
        ema.copy_to_parameters()
    ema_of_file = use_ema if "ema" in content else None
    loaded = _loaded_from(content, path, network.parameters(), ema_of_file)
    compute.freeze(network, config.compute, device)
    return TrainedScore(models.create_score(config, network, sde), sde, config, loaded)


def open_score(path: str | os.PathLike, device: str = "auto", use_ema: bool = True) -> TrainedScore:
    """`load_score` with the configuration that the checkpoint holds.

    Raises:
        UserError: the checkpoint is missing, or a published one, which holds no configuration.
    """
    before = checkpoints.read_config(path)
    if before is None:
        raise UserError(f"{path} holds no configuration; call load_score with its configuration.")
    trained = load_score(ml_collections.ConfigDict(before), path, get_device(device), use_ema)
    trained.config.lock()  # a mistyped field is an error
    return trained


def load_classifier(
    config: ml_collections.ConfigDict, path: str | os.PathLike, device: torch.device
) -> tuple[torch.nn.Module, LoadedFrom, ml_collections.ConfigDict]:
    """The classifier of the checkpoint at `path`, in eval mode.

    Args:
        config: of the score model; the classifier must have the same scaling of the data.

    Returns:
        The network, which weights it has, and `config` with the checkpoint's classifier.

    Raises:
        UserError: the checkpoint is missing, or does not fit the configuration or the score model.
    """
    content = checkpoints.read(path)
    checkpoints.require_kind(content, path, "classifier")
    before = checkpoints.config_of(content)
    score_fields = [n for n in descriptions.model_fields(before) if n.startswith("model.")]
    config = descriptions.adopt(config, before, path, score_fields, fixed=SHARED_DATA)
    network = models.create_classifier(config)
    checkpoints.load_model(network, content, path)
    loaded = _loaded_from(content, path, network.state_dict().values(), None)
    return compute.freeze(network, config.compute, device), loaded, config


def _loaded_from(content, path, weights, ema):
    step = checkpoints.read_count(content, "step", path)
    data = content.get("data")
    classes = tuple(map(str, data.get("classes") or ())) if isinstance(data, dict) else ()
    name, digest = pathlib.Path(path).name, checkpoints.fingerprint(weights)
    return LoadedFrom(name, step, digest, ema, classes)


@dataclasses.dataclass(frozen=True)
class SamplingModel:
    """The model of a sampling command.

    Attributes:
        config: the command's configuration with the checkpoints' settings.
        trained: the score, without guidance.
        guidance: function of labels and scale, ``guidance(labels=, scale=)``, to a guided score;
            None: the samples have no classes.
        origin: the record of the weights in files of samples.
        description: the weights, as text.
    """

    config: ml_collections.ConfigDict
    trained: TrainedScore
    guidance: Callable | None
    origin: dict[str, object]
    description: str


def load_sampling_model(
    config: ml_collections.ConfigDict, place: Workdir, device: torch.device
) -> SamplingModel:
    """The model that a sampling command with the configuration `config` draws with.

    Raises:
        UserError: a checkpoint is missing or does not fit the configuration.
    """
    (_, score_path), *classifiers = checkpoint_paths(config, place)
    trained = load_score(config, score_path, device)
    loaded, guidance = trained.loaded, None
    origin, words = {"checkpoint": loaded.checkpoint, "ema": loaded.ema}, str(loaded)
    if classifiers:
        ((_, path),) = classifiers
        classifier, of_classifier, config = load_classifier(trained.config, path, device)
        guidance = functools.partial(GuidedScore, trained.score, classifier, trained.sde)
        words = f"score: {loaded}; classifier: {of_classifier}"
        origin["classifier"] = of_classifier.checkpoint
        origin["classifier_step"] = of_classifier.step
        origin["classifier_weights"] = of_classifier.fingerprint
        origin["classes"] = list(of_classifier.class_names)
    else:
        config = trained.config
        if config.model.get("num_classes"):
            guidance = functools.partial(ClassifierFreeScore, trained.score)
            origin["classes"] = list(loaded.class_names)
    names = ("checkpoint_step", "weights") if guidance is None else ("score_step", "score_weights")
    origin |= dict(zip(names, (loaded.step, loaded.fingerprint)))
    return SamplingModel(config, trained, guidance, origin, words)


def trained_weights(config: ml_collections.ConfigDict, place: Workdir) -> str | os.PathLike:
    """The workdir's checkpoint of ``config.eval.checkpoint_idx``, by default the newest.

    If no training has begun there, the default is the weights of ``config.model.pretrained``.

    Raises:
        UserError: those weights cannot be loaded.
    """
    path, pretrained = place.checkpoint(config.eval.checkpoint_idx), config.model.get("pretrained")
    begun = path.exists() or place.resume_point.exists()
    if pretrained is None or config.eval.checkpoint_idx is not None or begun:
        return path
    return pipelines.local(pretrained)


def score_path(config: ml_collections.ConfigDict, place: Workdir) -> str | os.PathLike:
    """The checkpoint of the score: ``config.model.score_restore_path``, else `trained_weights`."""
    return config.model.get("score_restore_path") or trained_weights(config, place)


def checkpoint_paths(
    config: ml_collections.ConfigDict, place: Workdir
) -> Iterator[tuple[str, str | os.PathLike]]:
    """Yields the kind and path of each checkpoint of `config`: the score's, then the classifier's.

    The workdir's checkpoints are used where ``config.model`` names none.
    """
    yield "score model", score_path(config, place)
    if describes_classifier(config):
        named = config.model.classifier_restore_path
        yield "classifier", named or trained_weights(config, place)


def adopt_from_checkpoints(
    config: ml_collections.ConfigDict,
    paths: Iterable[tuple[str, str | os.PathLike]],
    typed: Collection[str] = (),
) -> ml_collections.ConfigDict:
    """`config` with the networks, SDE and scaling of the checkpoints that its command loads.

    A checkpoint that is missing, damaged or of another kind is skipped; loading it fails later.

    Args:
        paths: kind and path of each checkpoint, as `checkpoint_paths` gives them.
        typed: names of fields set on the command line.

    Raises:
        UserError: a checkpoint is of another kind of model, or contradicts a field in `typed`.
    """
    for kind, path in paths:
        try:
            before = checkpoints.read_config(path)
        except UserError:
            continue
        if before is None or (kind == "classifier") != ("classifier" in before):
            continue
        if "model.pretrained" in typed and os.path.isfile(path):
            log.info("config.model.pretrained is ignored: the weights are those of %s.", path)
        # The score model's fields are those of its own checkpoint.
        fields = descriptions.model_fields(before) if kind == "classifier" else ()
        keep = [name for name in fields if name.startswith("model.")]
        config = descriptions.adopt(config, before, path, keep, typed)
    return config
