"""Features of samples and of the real images, as `encoding` left them: what the metrics compare.

Nothing here imports PyTorch, so that features can be read in the environment of TF-GAN too.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from metrics.sample_sets import find, flags_of, parts_of, read_meta
from storage.files import load_npz
from storage.settings import draws_by_class
from storage.workdir import Workdir, variant
from utils import UserError, require_positive, shares

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


def open_sets(
    config: ml_collections.ConfigDict, workdir: str, dataset_stat: str | os.PathLike | None = None
) -> tuple[FeatureSet, FeatureSet]:
    """The real and the generated `FeatureSet` of a run.

    Without classes the real one is `dataset_stat`, else the workdir's own, else the published file
    of the data set, ``results/{dataset}_stats.npz``. With classes both lie class after class, and
    of each class's samples the first ``config.eval.num_samples_all`` / classes count.

    Raises:
        UserError: one is not there; says which command makes it.
    """
    generated = open_generated(config, workdir)
    real = open_real(config, workdir, dataset_stat)
    if draws_by_class(config):
        classes = (each.origin.get("classes") for each in (real, generated))
        require_same_classes(*classes, real.source)
    return real, generated


def open_real(
    config: ml_collections.ConfigDict, workdir: str, dataset_stat: str | os.PathLike | None = None
) -> FeatureSet:
    """The real set of `open_sets`, with the same errors."""
    place, command = Workdir(workdir), _command(config, workdir)
    if draws_by_class(config):
        return _open(_first_that_exists([place.class_stat], f"{command} --stat --config …"), "size")
    if dataset_stat is not None:
        return _open(pathlib.Path(dataset_stat))
    published = pathlib.Path("results") / f"{config.data.dataset.lower()}_stats.npz"
    own = [place.dataset_stat(variant(config)), *place.dataset_stats()]
    advice = f"{command} --encode_dataset --config … (or name a file with --dataset_stat)"
    return _open(_first_that_exists([*own, published], advice))


def open_generated(config: ml_collections.ConfigDict, workdir: str) -> FeatureSet:
    """The generated set of `open_sets`, with the same errors."""
    place, command = Workdir(workdir), _command(config, workdir)
    if draws_by_class(config):
        return _open_latents(config, place, f"To complete it, {command} --latent --config …")
    path = place.generated_stat(variant(config))
    return _open(_first_that_exists([path], f"{command} --encode --config …"), "logit")


def _command(config, workdir):
    script = "run_lib_evaluation.py" if draws_by_class(config) else "run_lib_evaluation_fidis.py"
    return f"run first: python {script} --workdir {workdir}{flags_of(config)}"


def require_same_classes(
    real: Sequence[str] | None, generated: Sequence[str] | None, source: object
) -> None:
    """Refuse to compare classes by number whose names, where both are known, differ.

    Raises:
        UserError: they differ; `source` is where the real ones lie.
    """
    if real and generated and list(real) != list(generated):
        raise UserError(
            f"The samples are of the classes {', '.join(generated)}, and {source} of "
            f"{', '.join(real)}; their numbers do not mean the same. Restore the folders' names."
        )


def _first_that_exists(paths, advice):
    for path in paths:
        if path.exists():
            return path
    raise UserError(f"There are no features in {' or '.join(map(str, paths))}; {advice}")


def _open(path, *more):
    """The set in the file at `path`, with the arrays in `more`: its logits, or sizes of classes."""
    content = load_npz(path, "pool_3", *more, optional=("meta",))
    pool, size = _rows_of(content, "pool_3", path), content.get("size")
    if size is not None and (size.dtype.kind not in "iu" or size.sum() != len(pool)):
        raise UserError(f"{path} does not hold the number of images of each class.")
    logits = _rows_of(content, "logit", path) if "logit" in content else None
    sizes = None if size is None else size.tolist()
    return FeatureSet(pool, logits, sizes, *_claims(read_meta(content, path), path), source=path)


def _rows_of(content, name, path):
    array = content[name]
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise UserError(
            f"{path} holds {name} of {array.dtype} and shape {array.shape}; expected a row of "
            "numbers for each image."
        )
    return array


def _claims(meta, path):
    """The extractors that a feature file may be of, and the origin of its images."""
    if not meta:
        return PUBLISHED_FEATURES, {}
    if not (isinstance(meta.get("features"), str) and isinstance(meta.get("samples"), dict)):
        raise UserError(f"{path} does not say which features of which images it holds.")
    return (meta["features"],), meta["samples"]


def _open_latents(config, place, advice):
    """The set in the files of every class's samples."""
    parts = parts_of(config, place, place.latents)
    total = require_positive(config.eval.num_samples_all, "config.eval.num_samples_all")
    sizes = shares(total, len(parts))
    for part, size in zip(parts, sizes, strict=True):
        if size > part.expected:
            raise UserError(
                f"config.eval.num_samples_all is {total}, {size} of {part.name}, but of the "
                f"{config.eval.num_samples} samples (config.eval.num_samples) that class has "
                f"{part.expected}; ask for fewer."
            )
    pools, logits = [], []
    classes = find(parts, "pool_3", advice)
    first = classes[0][0]
    for rounds, size in zip(classes, sizes, strict=True):
        for item in rounds:
            content = load_npz(item.path, "pool_3", "logits")
            rows = max(0, min(size, item.rows))
            size -= rows
            pools.append(_rows_of(content, "pool_3", item.path)[:rows])
            logits.append(_rows_of(content, "logits", item.path)[:rows])
    try:
        pool, logits = np.concatenate(pools), np.concatenate(logits)
    except ValueError as error:
        folder = parts[0].folder.parent
        raise UserError(f"The files in {folder} do not fit together ({error}).") from None
    claims = _claims(first.origin, first.path)
    return FeatureSet(pool, logits, sizes, *claims, source=parts[0].folder.parent)
