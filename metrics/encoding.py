"""Features of samples and of the real images, written to disk.

Without classes there is one file of each kind. With classes, as in DLSM, real images and features
are ordered by class, and each file of samples has a file of features. Every file names its feature
network and the settings of its images. The ranks of torchrun share the encoding.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

import datasets
import domains
from metrics import extractors, feature_classifier, sharing
from metrics.sample_sets import find_samples, mean_nfe
from storage.files import is_up_to_date, load_npz, save_npz, to_json
from storage.settings import draws_by_class
from storage.workdir import Workdir, variant
from utils import UserError, get_device, log, log_to, lookup

# ---------------------------------------------------------------- feature extractors


def classifier(config: ml_collections.ConfigDict) -> feature_classifier.ClassifierFeatures:
    """Features of a classifier of ``config.data``, which is trained on first use."""
    data = config.data
    log.info("The features are of a classifier of %s.", data.dataset)
    split = datasets.load(data, "train")
    cache = pathlib.Path(data.cache) / f"{data.dataset}-features.pth"
    images, device = domains.channels_last(split.images), get_device(config.device)
    return feature_classifier.ClassifierFeatures(data.dataset, images, split.labels, device, cache)


# ``config.eval.features`` -> a function of the configuration.
EXTRACTORS = {
    "inception": lambda config: extractors.inception(
        get_device(config.device), config.eval.inception_weights
    ),
    "tfhub": lambda config: extractors.TFHubFeatures(),
    "dinov2": lambda config: extractors.dinov2(
        get_device(config.device), config.eval.dinov2_weights
    ),
    "classifier": classifier,
}


def open_extractor(config: ml_collections.ConfigDict) -> extractors.Extractor:
    """The feature extractor of ``config.eval.features``, see `extractors`.

    Raises:
        UserError: there is no such extractor, or its weights are missing.
    """
    require_extractor(config)
    with sharing.rank0_first():  # it downloads or trains for all ranks
        return EXTRACTORS[config.eval.features](config)


def require_extractor(config: ml_collections.ConfigDict) -> None:
    """Raise a UserError if there is no such extractor, or a file that is named is missing."""
    name = config.eval.features
    lookup(EXTRACTORS, name, "config.eval.features")
    domains.images_of(config.data, f"The feature network {name}")
    weights = config.eval.get(f"{name}_weights")
    if weights and not pathlib.Path(weights).is_file():
        raise UserError(f"config.eval.{name}_weights is {weights}; this file does not exist.")


def describe_extractor(config: ml_collections.ConfigDict) -> str:
    """A text that says where the extractor's weights come from; weights on disk are loaded.

    Raises:
        UserError: as `open_extractor`.
    """
    require_extractor(config)
    name = config.eval.features
    named = config.eval.get(f"{name}_weights")
    if name == "inception" and named is None and not extractors.inception_file().exists():
        return f"whose weights are downloaded on first use to {extractors.inception_file()}"
    if name not in ("inception", "dinov2"):
        return "whose network is made on first use"
    EXTRACTORS[name](config)
    return f"with the weights in {named or extractors.inception_file()}"


# ---------------------------------------------------------------- encoding


@dataclasses.dataclass(frozen=True)
class FeatureFile:
    """A file of features to write: its batches of images, and the other arrays in it."""

    path: pathlib.Path
    batches: Sequence[extractors.Batch]
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    logits: str = "logit"


def encode_dataset(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write the features of the split ``config.eval.real_split``: pool_3 (N, D) and logit (N, K).

    For samples without classes the file is ``stat{variant}/dataset_stat.npz``. For samples with
    classes it is ``stat/stat.npz``, ordered by class, with the images `batch`, uint8 (N, H, W, C),
    and the `size` and the first row, `start`, of each class.

    Raises:
        UserError: the data set or the feature network is missing, or the file is a published one.
    """
    place = Workdir(workdir)
    by_class = draws_by_class(config)
    path = place.class_stat if by_class else place.dataset_stat(variant(config))
    if path.exists() and not load_npz(path, optional=("meta",)):
        raise UserError(
            f"{path} does not record its settings, like the published feature files; --fidis and "
            "--prdc read it as it is. Remove it to encode the data set here."
        )
    extractor = open_extractor(config)
    split = datasets.load(config.data, config.eval.real_split)
    images, arrays, order = domains.channels_last(split.images), {}, np.arange(len(split))
    if by_class:
        order = np.argsort(split.labels, kind="stable")
        counts = np.bincount(split.labels, minlength=split.classes)
        arrays = {"batch": images[order], "size": counts, "start": np.cumsum(counts) - counts}
    size = config.eval.batch_size
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    batches = [
        extractors.Batch(len(rows), functools.partial(images.__getitem__, rows)) for rows in chunks
    ]
    origin = {
        "dataset": config.data.dataset,
        "split": config.eval.real_split,
        "data": split.identity["hash"],
        "classes": list(split.class_names),
    }
    meta = {"features": extractor.name, "count": len(split), "samples": origin}
    write_missing(config, place, extractor, [FeatureFile(path, batches, meta, arrays)])


def encode_samples(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write the features of the samples: pool_3 (N, D) and logit (N, K).

    For samples without classes the file is ``stat{variant}/generated_stat.npz``. For samples with
    classes each file of samples has a ``latent{variant}/{class}/samples_{round}_latent.npz``, with
    `logits` in place of `logit`.

    Raises:
        UserError: samples are missing or of different origin, or the feature network is missing.
    """
    place = Workdir(workdir)
    parts = find_samples(config, place)
    extractor = open_extractor(config)
    rounds = list(itertools.chain.from_iterable(parts))
    origin = dict(rounds[0].origin)
    if (nfe := mean_nfe(rounds)) is not None:
        origin["nfe"] = nfe
    meta = {"features": extractor.name, "samples": origin}
    if draws_by_class(config):
        files = [
            FeatureFile(
                place.latents(label, variant(config)) / f"samples_{item.number}_latent.npz",
                [item],
                meta,
                logits="logits",
            )
            for label, part in enumerate(parts)
            for item in part
        ]
    else:
        # The noise of pc and ode depends on the sizes of the rounds.
        sizes = hashlib.sha256(str([item.rows for item in rounds]).encode()).hexdigest()[:16]
        meta |= {"count": sum(item.rows for item in rounds), "rounds": sizes}
        files = [FeatureFile(place.generated_stat(variant(config)), rounds, meta)]
    write_missing(config, place, extractor, files)


def write_missing(
    config: ml_collections.ConfigDict,
    place: Workdir,
    extractor: extractors.Extractor,
    files: Sequence[FeatureFile],
) -> None:
    """Encode and write the `files` that do not exist yet.

    Raises:
        UserError: one exists and has another origin.
    """
    place.create()
    log_to(place.log_file)
    sharing.barrier(**files[0].meta)
    missing = []
    for file in files:
        count = sum(batch.rows for batch in file.batches)
        shapes = {name: np.shape(array) for name, array in file.arrays.items()}
        shapes["pool_3"] = (count, extractor.pool_width)
        shapes[file.logits] = (count, extractor.logit_width)
        folder = file.path if len(files) == 1 else file.path.parent.parent
        if not is_up_to_date(file.path, file.meta, f"remove {folder} to encode anew.", **shapes):
            missing.append(file)
    batches = [batch for file in missing for batch in file.batches]
    encoded = extractors.encode_batches(extractor, batches, config.eval.microbatch)
    for file in missing:
        # Only rank 0 gets features; on the other ranks the first iteration encodes their share.
        if parts := list(itertools.islice(encoded, len(file.batches))):
            pool, logits = map(np.concatenate, zip(*parts, strict=True))
            arrays = {**file.arrays, "pool_3": pool, file.logits: logits}
            save_npz(file.path, **arrays, meta=to_json(file.meta))
    sharing.barrier()
    log.info(
        "Features %s: wrote %d of %d files, such as %s.",
        extractor.name,
        len(missing),
        len(files),
        files[0].path,
    )
