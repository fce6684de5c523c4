"""Features of samples and of the real images, on disk: encoding writes them, the metrics read them.

A QC run keeps one file of each kind. A DLSM run keeps real images and features class by class, and
one file of features for each file of samples. Every file says what it holds features of, and whose
features they are. Processes that torchrun started share the encoding (`sharing`).

Data sets, and with them PyTorch, are imported where they are used, so that features can be read
in the environment of TF-GAN too.
"""

import dataclasses
import functools
import itertools
import pathlib

import numpy as np
from tqdm import tqdm

import domains
from metrics import extractors, sharing
from metrics.sample_sets import Part, check_images, find, in_batches, read_meta, read_round, rows_of
from storage.files import load_npz, save_npz, stands, to_json
from storage.workdir import Workdir
from utils import UserError, get_device, is_first, log, log_to, lookup, require_positive, shares

# Feature files of the published code say nothing about themselves. They are of the FID Inception
# network, and comparable with what either of its two forms here gives.
PUBLISHED_FEATURES = ("inception-2015-12-05", "inception-tfhub")


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    Attributes:
        pool: (N, D).
        logits: (N, K); None for real images, whose logits no metric asks for.
        sizes: images of each class, in whose order they lie; None where there are no classes.
        extractors: names of feature extractors that these may be of; one, where the file says.
        origin: what made the images, a dict; empty where it is not known.
        source: where the features lie.
    """

    pool: np.ndarray
    logits: np.ndarray | None
    sizes: list[int] | None
    extractors: tuple[str, ...]
    origin: dict
    source: pathlib.Path


# ---------------------------------------------------------------- feature extractors


def inception(config):
    return extractors.InceptionFeatures(
        get_device(config.device), config.eval.inception_weights, config.eval.trust_weights
    )


def tfhub(config):
    return extractors.TFHubFeatures()


def classifier(config):
    data = config.data
    split = training_split(data)
    cache = pathlib.Path(data.cache) / f"{data.dataset}-extractors.pth"
    images = split.images.transpose(0, 2, 3, 1)
    device = get_device(config.device)
    return extractors.ClassifierFeatures(data.dataset, images, split.labels, device, cache)


EXTRACTORS = {"inception": inception, "tfhub": tfhub, "classifier": classifier}


def open_extractor(config):
    """The feature extractor of ``config.eval.features``.

    Raises:
        UserError: there is no such extractor, or it cannot be had.
    """
    make = lookup(EXTRACTORS, config.eval.features, "config.eval.features")
    domains.images_of(config.data, f"The feature network {config.eval.features}")
    require_positive(config.eval.batch_size, "config.eval.batch_size")
    with sharing.first_ahead():  # what it downloads or trains, the others find
        return make(config)


def training_split(data):
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


# ---------------------------------------------------------------- what there should be


def is_ode(config):
    return config.sampling.method == "ode"


def division_parts(config, place):
    """A part for each division of a QC run."""
    for field in ("num_samples", "num_divisions"):
        require_positive(config.eval[field], f"config.eval.{field}")
    sizes = shares(config.eval.num_samples, config.eval.num_divisions)
    return [
        Part(f"division {index}", place.division(index, is_ode(config)), size)
        for index, size in enumerate(sizes)
    ]


def class_parts(config, folder_of):
    """A part for each class of a DLSM run; ``folder_of(label, ode)`` holds it."""
    total = require_positive(config.eval.num_samples, "config.eval.num_samples")
    sizes = shares(total, config.classifier.classes)
    return [
        Part(f"class {label}", folder_of(label, is_ode(config)), size)
        for label, size in enumerate(sizes)
    ]


def find_samples(config, parts):
    """The rounds of every part, checked to be all there, images of the data's shape, of one make.

    Raises:
        UserError: they are not.
    """
    ode = " --ode" if is_ode(config) else ""
    return find(
        parts,
        "samples",
        f"Draw what is missing with run_lib_sampling.py{ode}, or say what there is with "
        "--config.eval.num_samples and --config.eval.num_divisions.",
        check=functools.partial(check_images, data=config.data),
    )


def find_division_samples(config, workdir):
    """The rounds of a QC run's samples, one after the other."""
    parts = division_parts(config, Workdir(workdir))
    return list(itertools.chain.from_iterable(find_samples(config, parts)))


def find_class_samples(config, workdir):
    """The rounds of a DLSM run's samples, a list for each class."""
    return find_samples(config, class_parts(config, Workdir(workdir).class_samples))


def read_samples(rounds):
    """Yield the images of each round."""
    for item in rounds:
        yield read_round(item.path, "samples")[0]


# ---------------------------------------------------------------- encoding: one file (QC)


def encode_samples(config, workdir):
    """Write ``stat[_ode]/generated_stat.npz``: pool_3 (N, D) and logit (N, K) of the samples.

    Raises:
        UserError: samples are missing or of different origin, or no features are to be had.
    """
    place = Workdir(workdir)
    rounds = find_division_samples(config, workdir)
    log_to(place.log_file)
    extractor = open_extractor(config)
    count = sum(item.rows for item in rounds)
    meta = {"features": extractor.name, "count": count, "samples": rounds[0].origin}
    path = place.generated_stat(is_ode(config))
    batches = in_batches(read_samples(rounds), config.eval.batch_size)
    _encode(path, extractor, batches, count, meta)


def encode_dataset(config, workdir):
    """Write ``stat[_ode]/dataset_stat.npz``: pool_3 (N, D) and logit (N, K) of the training split.

    Raises:
        UserError: the data set or its features are not to be had, or the file is a published one.
    """
    place = Workdir(workdir)
    path = place.dataset_stat(is_ode(config))
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


# ---------------------------------------------------------------- encoding: by class (DLSM)


def encode_real_classes(config, workdir):
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


def encode_class_samples(config, workdir):
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
    folder = place.latents(0, is_ode(config)).parent
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


# ---------------------------------------------------------------- reading features


def open_sets(config, workdir, dataset_stat=None):
    """The real and the generated `FeatureSet` of a QC run.

    The real one is `dataset_stat`, else the workdir's own, else the published file of the data
    set, ``results/{dataset}_stats.npz``.

    Raises:
        UserError: one is not there; says which command makes it.
    """
    place, ode = Workdir(workdir), is_ode(config)
    command = f"run_lib_evaluation_fidis.py --workdir {workdir}{' --ode' if ode else ''}"
    generated = place.generated_stat(ode)
    if not generated.exists():
        raise UserError(
            f"{generated} does not exist; run first: python {command} --encode --config …"
        )
    if dataset_stat is None:
        published = pathlib.Path("results") / f"{config.data.dataset.lower()}_stats.npz"
        places = [place.dataset_stat(ode), place.dataset_stat(not ode), published]
        real = next((path for path in places if path.exists()), None)
        if real is None:
            raise UserError(
                f"There are no features of real images in {', '.join(map(str, places))}; run "
                f"first: python {command} --encode_dataset --config … (or name a file with "
                "--dataset_stat)"
            )
    else:
        real = pathlib.Path(dataset_stat)
    return _open_set(real), _open_set(generated, "logit")


def _open_set(path, *more):
    content = load_npz(path, "pool_3", *more, optional=("meta",))
    return FeatureSet(
        rows_of(content, "pool_3", path),
        rows_of(content, "logit", path),
        None,
        *_claims(read_meta(content, path), path),
        source=path,
    )


def _claims(meta, path):
    """The extractors that a feature file may be of, and the origin of its images."""
    if not meta:
        return PUBLISHED_FEATURES, {}
    if not (isinstance(meta.get("features"), str) and isinstance(meta.get("samples"), dict)):
        raise UserError(f"{path} does not say which features of which images it holds.")
    return (meta["features"],), meta["samples"]


def open_classes(config, workdir):
    """The real and the generated `FeatureSet` of a DLSM run, class after class.

    Of each class's samples the first ``config.eval.num_samples_all`` / classes count.

    Raises:
        UserError: features are missing; says which command makes them.
    """
    place = Workdir(workdir)
    if not place.class_stat.exists():
        raise UserError(
            f"{place.class_stat} does not exist; run first: python run_lib_evaluation.py "
            f"--workdir {workdir} --stat --config …"
        )
    content = load_npz(place.class_stat, "size", "pool_3", optional=("meta",))
    size = content["size"]
    if size.ndim != 1 or size.dtype.kind not in "iu" or len(size) == 0 or size.min() < 0:
        raise UserError(f"{place.class_stat} does not hold the number of images of each class.")
    real = FeatureSet(
        rows_of(content, "pool_3", place.class_stat),
        None,
        size.tolist(),
        *_claims(read_meta(content, place.class_stat), place.class_stat),
        source=place.class_stat,
    )
    return real, _open_latents(config, workdir)


def _open_latents(config, workdir):
    parts = class_parts(config, Workdir(workdir).latents)
    total = require_positive(config.eval.num_samples_all, "config.eval.num_samples_all")
    sizes = shares(total, len(parts))
    for part, size in zip(parts, sizes, strict=True):
        if size > part.expected:
            raise UserError(
                f"config.eval.num_samples_all is {total}, {size} of {part.name}, but of the "
                f"{config.eval.num_samples} samples (config.eval.num_samples) that class has "
                f"{part.expected}; ask for fewer."
            )
    ode = " --ode" if is_ode(config) else ""
    command = f"python run_lib_evaluation.py --workdir {workdir} --latent{ode} --config …"
    classes = find(parts, "pool_3", f"Run first: {command}")
    first = classes[0][0]
    widths = {name: array.shape[1] for name, array in _latents(first.path).items()}
    pool, logits = (np.empty((total, width), np.float32) for width in widths.values())
    done = 0
    for rounds, size in zip(classes, sizes, strict=True):
        end = done + size
        for item in rounds:
            content = _latents(item.path)
            for name, width in widths.items():
                if content[name].shape != (item.rows, width):
                    raise UserError(
                        f"{item.path} holds {name} of shape {content[name].shape}; expected "
                        f"{(item.rows, width)}, as in {first.path}."
                    )
            rows = min(end - done, item.rows)
            pool[done : done + rows] = content["pool_3"][:rows]
            logits[done : done + rows] = content["logits"][:rows]
            done += rows
    claims = _claims(first.origin, first.path)
    return FeatureSet(pool, logits, sizes, *claims, source=parts[0].folder.parent)


def _latents(path):
    """`pool_3` (n, D) and `logits` (n, K) of a file of samples.

    Raises:
        UserError: one is not there or no matrix of numbers.
    """
    content = load_npz(path, "pool_3", "logits")
    return {name: rows_of(content, name, path) for name in content}
