"""Features of samples and of the real images, written to disk.

Without classes there is one file of each kind. With classes, as in DLSM, real images and features
lie class after class, and there is a file of features for each file of samples. Every file says
what it holds features of, and whose features they are. Processes that torchrun started share the
encoding (`sharing`).

Data sets, and with them PyTorch, are imported where they are used, so that samples can be encoded
in the environment of TF-GAN too.
"""

import itertools
import pathlib
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
from tqdm import tqdm

import domains
from metrics import extractors, feature_classifier, sharing
from metrics.sample_sets import find_samples, in_batches, mean_nfe, read_samples
from storage.files import load_npz, save_npz, stands, to_json
from storage.settings import draws_by_class
from storage.workdir import Workdir, variant
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


def require_extractor(config: ml_collections.ConfigDict) -> str:
    """Says where the features of ``config.eval.features`` come from; loads and trains nothing.

    Raises:
        UserError: there is no such extractor, or a file that is named is missing.
    """
    name, evaluation = config.eval.features, config.eval
    lookup(EXTRACTORS, name, "config.eval.features")
    domains.images_of(config.data, f"The feature network {name}")
    for field in ("inception_weights", "dinov2_weights"):
        path = evaluation[field]
        if field.startswith(name) and path and not pathlib.Path(path).is_file():
            raise UserError(f"config.eval.{field} is {path}, and there is no such file.")
    if name == "classifier":
        cache = classifier_cache(config.data)
        return f"classifier, in {cache}" if cache.exists() else "classifier, which is trained first"
    return name


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


# ---------------------------------------------------------------- encoding


def encode_dataset(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write the features of the real training split: pool_3 (N, D) and logit (N, K).

    Of samples without classes the file is ``stat{variant}/dataset_stat.npz``. Of samples with
    classes it is ``stat/stat.npz``, class after class, with the images, `batch`, uint8
    (N, H, W, C), and of each class its `size` and where it `start`s.

    Raises:
        UserError: the data set or its features are not to be had, or the file is a published one.
    """
    place = Workdir(workdir)
    by_class = draws_by_class(config)
    path = place.class_stat if by_class else place.dataset_stat(variant(config))
    if path.exists() and not load_npz(path, optional=("meta",)):
        raise UserError(
            f"{path} does not say what made it, like the published feature files; --fidis and "
            "--prdc read it as it is. Remove it to encode the data set here."
        )
    place.check()
    extractor = open_extractor(config)
    split = training_split(config.data)
    place.create()
    log_to(place.log_file)
    images, arrays = split.images, {}
    if by_class:
        size = np.bincount(split.labels, minlength=split.classes)
        images = images[np.argsort(split.labels, kind="stable")]
        arrays = {"batch": None, "size": size, "start": np.cumsum(size) - size}
    images = images.transpose(0, 2, 3, 1)
    if by_class:
        arrays["batch"] = images
    meta = {
        "features": extractor.name,
        "count": len(images),
        "samples": {"dataset": config.data.dataset, "split": "train"},
    }
    batches = in_batches([images], config.eval.batch_size)
    _encode(path, extractor, batches, len(images), meta, **arrays)


def encode_samples(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Write the features of the samples: pool_3 (N, D) and logit (N, K).

    Of samples without classes the file is ``stat{variant}/generated_stat.npz``. Of samples with
    classes there is ``latent{variant}/{class}/samples_{round}_latent.npz`` for each file of them,
    with `logits` in place of `logit`; those that stand are kept.

    Raises:
        UserError: samples are missing or of different origin, or no features are to be had.
    """
    place = Workdir(workdir)
    parts = find_samples(config, place)
    log_to(place.log_file)
    extractor = open_extractor(config)
    rounds = list(itertools.chain.from_iterable(parts))
    origin = dict(rounds[0].origin)
    if (nfe := mean_nfe(rounds)) is not None:
        origin["nfe"] = nfe
    meta = {"features": extractor.name, "samples": origin}
    if draws_by_class(config):
        _encode_files(config, place, extractor, parts, meta)
        return
    count = sum(item.rows for item in rounds)
    batches = in_batches(read_samples(rounds), config.eval.batch_size)
    path = place.generated_stat(variant(config))
    _encode(path, extractor, batches, count, dict(meta, count=count))


def _encode(path, extractor, batches, count, meta, **more):
    """Write the features of the images in `batches`, with the arrays in `more` beside them.

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


def _encode_files(config, place, extractor, parts, meta):
    """Write a file of features for each file of samples; processes take files in turn."""
    folder = place.latents(0, variant(config)).parent
    every = [(label, item) for label, rounds in enumerate(parts) for item in rounds]
    own, total = sharing.own(every), sum(item.rows for _, item in every)
    sharing.wait(**meta)
    count = sum(item.rows for _, item in own)
    with tqdm(total=count, unit="img", desc="latents", disable=not is_first()) as bar:
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
