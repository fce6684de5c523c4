"""Features of samples and of the real images, written to disk.

Without classes there is one file of each kind. With classes, as in DLSM, real images and features
lie class after class, and there is a file of features for each file of samples. Every file says
what it holds features of, and whose features they are. Processes that torchrun started share the
encoding (`sharing`).

Data sets, and with them PyTorch, are imported where they are used, so that samples can be encoded
in the environment of TF-GAN too.
"""

import hashlib
import itertools
import pathlib
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
from tqdm import tqdm

import domains
from metrics import extractors, feature_classifier, sharing
from metrics.sample_sets import find_samples, mean_nfe
from storage.files import is_up_to_date, load_npz, save_npz, to_json
from storage.settings import draws_by_class
from storage.workdir import Workdir, variant
from utils import UserError, get_device, is_first, log, log_to, lookup, require_positive

if TYPE_CHECKING:  # torch need not be there
    import datasets

# ---------------------------------------------------------------- feature extractors


def classifier(config: ml_collections.ConfigDict) -> feature_classifier.ClassifierFeatures:
    """Features of a classifier of ``config.data``, which is trained at its first use."""
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


# What config.eval.features names -> a function of the configuration.
EXTRACTORS = {
    "inception": lambda config: extractors.InceptionFeatures(
        get_device(config.device), config.eval.inception_weights, config.eval.trust_weights
    ),
    "tfhub": lambda config: extractors.TFHubFeatures(),
    "dinov2": lambda config: extractors.DINOv2Features(
        get_device(config.device), config.eval.dinov2_weights
    ),
    "classifier": classifier,
}


def open_extractor(config: ml_collections.ConfigDict) -> extractors.Extractor:
    """The feature extractor of ``config.eval.features``, see `extractors`.

    Raises:
        UserError: there is no such extractor, or it cannot be had.
    """
    require_extractor(config)
    with sharing.first_ahead():  # what it downloads or trains, the others find
        return EXTRACTORS[config.eval.features](config)


def require_extractor(config: ml_collections.ConfigDict) -> str:
    """Says where the features of ``config.eval.features`` come from; loads and trains nothing.

    Raises:
        UserError: there is no such extractor, or a file that is named is missing.
    """
    name, evaluation = config.eval.features, config.eval
    lookup(EXTRACTORS, name, "config.eval.features")
    domains.images_of(config.data, f"The feature network {name}")
    require_positive(evaluation.batch_size, "config.eval.batch_size")
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
    except ImportError as error:  # TF-GAN's environment
        raise UserError(
            f"Data sets cannot be read in this environment ({error}); give features that stand "
            "with --dataset_stat."
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
        arrays = {
            "batch": images.transpose(0, 2, 3, 1),
            "size": size,
            "start": np.cumsum(size) - size,
        }
    batches = extractors.batches_of(images.transpose(0, 2, 3, 1), config.eval.batch_size)
    meta = {
        "features": extractor.name,
        "count": len(images),
        "samples": {
            "dataset": config.data.dataset,
            "split": "train",
            "data": split.identity["hash"],
            "classes": list(split.class_names),
        },
    }
    sharing.wait(**meta)
    if _write(config, path, extractor, batches, meta, **arrays):
        log.info("Wrote the features of %d images, %s, to %s.", len(images), extractor.name, path)


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
    meta, count = {"features": extractor.name, "samples": origin}, sum(r.rows for r in rounds)
    sharing.wait(**meta)
    if not draws_by_class(config):
        path = place.generated_stat(variant(config))
        # The noise of pc and ode depends on the sizes of the rounds.
        sizes = hashlib.sha256(str([r.rows for r in rounds]).encode()).hexdigest()[:16]
        written = _write(config, path, extractor, rounds, dict(meta, count=count, rounds=sizes))
    else:
        path, written = place.latents(0, variant(config)).parent, True
        every = [(label, item) for label, part in enumerate(parts) for item in part]
        for label, item in tqdm(sharing.own(every), desc="latents", disable=not is_first()):
            file = path / str(label) / f"samples_{item.number}_latent.npz"
            _write(config, file, extractor, [item], meta, together=False)
        sharing.wait()
    if written:
        log.info("Wrote the features of %d samples, %s, to %s.", count, extractor.name, path)


def _write(config, path, extractor, batches, meta, together=True, **more):
    """Write the features of `batches`, with the arrays in `more` beside them; False: they stand.

    `together` the processes that torchrun started take batches in turn, and the first writes one
    file; else each writes a file of its own.
    """
    count, logits = sum(batch.rows for batch in batches), "logit" if together else "logits"
    shapes = {name: np.shape(array) for name, array in more.items()}
    shapes |= {"pool_3": (count, extractor.pool_width), logits: (count, extractor.logit_width)}
    place = path if together else path.parent.parent
    if is_up_to_date(path, meta, f"remove {place} to encode anew.", **shapes):
        if together:
            log.info("%s stands.", path)
        return False
    pool, logit = extractors.extract(extractor, batches, config.eval.microbatch, together)
    if is_first() or not together:
        save_npz(path, **more, pool_3=pool, **{logits: logit}, meta=to_json(meta))
    if together:
        sharing.wait()  # until the file is there
    return True
