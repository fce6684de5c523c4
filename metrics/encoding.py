"""Features of samples and of the real images, written to disk.

A QC run keeps one file of each kind. A DLSM run keeps real images and features class by class, and
one file of features for each file of samples. Every file says what it holds features of, and whose
features they are. Processes that torchrun started share the encoding (`sharing`).

Data sets, and with them PyTorch, are imported where they are used, so that samples can be encoded
in the environment of TF-GAN too.
"""

import pathlib
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
from tqdm import tqdm

import domains
from metrics import extractors, feature_classifier, sharing
from metrics.sample_sets import (
    find_class_samples,
    find_division_samples,
    in_batches,
    read_samples,
)
from storage.files import load_npz, save_npz, stands, to_json
from storage.workdir import Workdir
from utils import UserError, get_device, is_first, log, log_to, lookup, require_positive

if TYPE_CHECKING:  # torch need not be there
    import datasets

# ---------------------------------------------------------------- feature extractors


def inception(config: ml_collections.ConfigDict) -> extractors.InceptionFeatures:
    return extractors.InceptionFeatures(
        get_device(config.device), config.eval.inception_weights, config.eval.trust_weights
    )


def tfhub(config: ml_collections.ConfigDict) -> extractors.TFHubFeatures:
    return extractors.TFHubFeatures()


def dinov2(config: ml_collections.ConfigDict) -> extractors.DINOv2Features:
    return extractors.DINOv2Features(get_device(config.device), config.eval.dinov2_weights)


def classifier(config: ml_collections.ConfigDict) -> feature_classifier.ClassifierFeatures:
    data = config.data
    if not data.dataset:
        raise UserError(
            "The features classifier are of a classifier that is trained on a data set; name the "
            "set with --config.data.dataset, or give its --config."
        )
    log.info("The features are of a classifier of %s.", data.dataset)
    split = training_split(data)
    images = split.images.transpose(0, 2, 3, 1)
    return feature_classifier.ClassifierFeatures(
        data.dataset, images, split.labels, get_device(config.device), classifier_cache(data)
    )


def classifier_cache(data: ml_collections.ConfigDict) -> pathlib.Path:
    """Where the trained feature classifier of a data set is kept."""
    return pathlib.Path(data.cache) / f"{data.dataset}-features.pth"


EXTRACTORS = {"inception": inception, "tfhub": tfhub, "dinov2": dinov2, "classifier": classifier}


def open_extractor(config: ml_collections.ConfigDict) -> extractors.InParts:
    """The feature extractor of ``config.eval.features``.

    Raises:
        UserError: there is no such extractor, or it cannot be had.
    """
    make = lookup(EXTRACTORS, config.eval.features, "config.eval.features")
    domains.images_of(config.data, f"The feature network {config.eval.features}")
    require_positive(config.eval.batch_size, "config.eval.batch_size")
    with sharing.first_ahead():  # what it downloads or trains, the others find
        return extractors.InParts(make(config), config.eval.microbatch)


def training_split(data: ml_collections.ConfigDict) -> "datasets.Split":
    """The real images that samples are compared with.

    Raises:
        UserError: the data set is not to be had, or not in this environment.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Data sets cannot be read in this environment ({error}). Install torch, filelock, "
            "pillow and tensorflow-datasets in it, or give features that stand with "
            "--dataset_stat."
        ) from None
    return datasets.load(data, "train")


# ---------------------------------------------------------------- encoding: one file (QC)


def encode_samples(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write ``stat[_METHOD]/generated_stat.npz``: pool_3 (N, D) and logit (N, K) of the samples.

    Raises:
        UserError: samples are missing or of different origin, or no features are to be had.
    """
    place = Workdir(workdir)
    rounds = find_division_samples(config, workdir)
    log_to(place.log_file)
    extractor = open_extractor(config)
    count = sum(item.rows for item in rounds)
    meta = {"features": extractor.name, "count": count, "samples": rounds[0].origin}
    path = place.generated_stat(config.sampling.method)
    batches = in_batches(read_samples(rounds), config.eval.batch_size)
    _encode(path, extractor, batches, count, meta)


def encode_dataset(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write ``stat[_METHOD]/dataset_stat.npz``: pool_3 (N, D) and logit (N, K) of real images.

    Raises:
        UserError: the data set or its features are not to be had, or the file is a published one.
    """
    place = Workdir(workdir)
    path = place.dataset_stat(config.sampling.method)
    _keep_published(path)
    place.check()
    extractor = open_extractor(config)
    split = training_split(config.data)
    place.create()
    log_to(place.log_file)
    batches = in_batches([split.images.transpose(0, 2, 3, 1)], config.eval.batch_size)
    _encode(path, extractor, batches, len(split), _real_meta(config, extractor, len(split)))


def _keep_published(path):
    """Refuse to overwrite a feature file that was put there: it does not say what made it."""
    if path.exists() and not load_npz(path, optional=("meta",)):
        raise UserError(
            f"{path} does not say what made it, like the published feature files; --fidis and "
            "--prdc read it as it is. Remove it to encode the data set here."
        )


def _real_meta(config, extractor, count):
    return {
        "features": extractor.name,
        "count": count,
        "samples": {"dataset": config.data.dataset, "split": "train"},
    }


def _encode(path, extractor, batches, count, meta, **more):
    """Write the features of the images in `batches`, with the arrays in `more` before them.

    The processes that torchrun started take batches in turn, and the first writes.
    """
    shapes = {name: np.shape(array) for name, array in more.items()}
    shapes["pool_3"] = (count, extractor.pool_width)
    shapes["logit"] = (count, extractor.logit_width)
    sharing.wait(**meta)
    if sharing.first_decides(stands, path, meta, "remove it to encode anew.", **shapes):
        log.info("%s stands.", path)
        return
    pool, logit = extractors.extract_together(extractor, batches, count)
    if is_first():
        save_npz(path, **more, pool_3=pool, logit=logit, meta=to_json(meta))
        log.info("Wrote the features of %d images, %s, to %s.", count, extractor.name, path)
    sharing.wait()  # until the file is there


# ---------------------------------------------------------------- encoding: by class (DLSM)


def encode_real_classes(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write ``stat/stat.npz`` of the real training split, class after class.

    It holds `batch`, uint8 (N, H, W, C); of each class its `size` and where it `start`s; `pool_3`
    (N, D) and `logit` (N, K).

    Raises:
        UserError: the data set or its features are not to be had.
    """
    place = Workdir(workdir)
    path = place.class_stat
    _keep_published(path)
    place.check()
    extractor = open_extractor(config)
    split = training_split(config.data)
    count = len(split)
    place.create()
    log_to(place.log_file)
    meta = _real_meta(config, extractor, count)
    size = np.bincount(split.labels, minlength=split.classes)
    images = split.images[np.argsort(split.labels, kind="stable")].transpose(0, 2, 3, 1)
    batches = in_batches([images], config.eval.batch_size)
    start = np.cumsum(size) - size
    _encode(path, extractor, batches, count, meta, batch=images, size=size, start=start)


def encode_class_samples(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write ``latent/{class}/samples_{round}_latent.npz`` for every file of samples.

    Files that stand are kept. Each holds `pool_3` (n, D) and `logits` (n, K).

    Raises:
        UserError: samples are missing or of different origin, or no features are to be had.
    """
    place = Workdir(workdir)
    classes = find_class_samples(config, workdir)
    log_to(place.log_file)
    extractor = open_extractor(config)
    meta = {"features": extractor.name, "samples": classes[0][0].origin}
    folder = place.latents(0, config.sampling.method).parent
    every = [(label, item) for label, rounds in enumerate(classes) for item in rounds]
    own, total = sharing.own(every), sum(item.rows for _, item in every)
    sharing.wait(**meta)
    bar = tqdm(
        total=sum(item.rows for _, item in own),
        unit="img",
        desc="latents",
        disable=not is_first(),
    )
    with bar:
        for label, item in own:
            path = folder / str(label) / f"samples_{item.number}_latent.npz"
            shapes = {
                "pool_3": (item.rows, extractor.pool_width),
                "logits": (item.rows, extractor.logit_width),
            }
            if not stands(path, meta, f"remove {folder} to encode anew.", **shapes):
                batches = in_batches(read_samples([item]), config.eval.batch_size)
                pool, logits = extractors.extract(extractor, batches, item.rows)
                save_npz(path, pool_3=pool, logits=logits, meta=to_json(meta))
            bar.update(item.rows)
    sharing.wait()
    log.info("Wrote the features of %d samples, %s, to %s.", total, extractor.name, folder)
