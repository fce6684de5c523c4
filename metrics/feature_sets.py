"""Features of samples and of the real images, as `encoding` left them: what the metrics compare.

Nothing here imports PyTorch, so that features can be read in the environment of TF-GAN too.
"""

import dataclasses
import os
import pathlib

import ml_collections
import numpy as np

from metrics.sample_sets import find, flags_of, parts_of, read_meta, rows_of
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
    place = Workdir(workdir)
    if draws_by_class(config):
        return _open_class_stat(place, workdir), _open_latents(config, workdir)
    command = _command(config, workdir)
    generated = place.generated_stat(variant(config))
    if not generated.exists():
        raise UserError(
            f"{generated} does not exist; run first: python {command} --encode --config …"
        )
    real = find_real(config, workdir, dataset_stat)
    return _open_set(real), _open_set(generated, "logit")


def _command(config, workdir):
    return f"run_lib_evaluation_fidis.py --workdir {workdir}{flags_of(config)}"


def find_real(
    config: ml_collections.ConfigDict, workdir: str, dataset_stat: str | os.PathLike | None = None
) -> pathlib.Path:
    """The file of the real images' features, see `open_sets`.

    Raises:
        UserError: there is none; says which command makes it.
    """
    if dataset_stat is not None:
        return pathlib.Path(dataset_stat)
    place = Workdir(workdir)
    published = pathlib.Path("results") / f"{config.data.dataset.lower()}_stats.npz"
    own = place.dataset_stat(variant(config))
    places = [own, *place.dataset_stats(), published]
    real = next((path for path in places if path.exists()), None)
    if real is None:
        raise UserError(
            f"There are no features of real images in {', '.join(map(str, places))}; run "
            f"first: python {_command(config, workdir)} --encode_dataset --config … (or name a "
            "file with --dataset_stat)"
        )
    return real


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


def _open_class_stat(place, workdir):
    if not place.class_stat.exists():
        raise UserError(
            f"{place.class_stat} does not exist; run first: python run_lib_evaluation.py "
            f"--workdir {workdir} --stat --config …"
        )
    content = load_npz(place.class_stat, "size", "pool_3", optional=("meta",))
    size = content["size"]
    if size.ndim != 1 or size.dtype.kind not in "iu" or len(size) == 0 or size.min() < 0:
        raise UserError(f"{place.class_stat} does not hold the number of images of each class.")
    return FeatureSet(
        rows_of(content, "pool_3", place.class_stat),
        None,
        size.tolist(),
        *_claims(read_meta(content, place.class_stat), place.class_stat),
        source=place.class_stat,
    )


def _open_latents(config, workdir):
    place = Workdir(workdir)
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
    flags = f"--latent{flags_of(config)}"
    command = f"python run_lib_evaluation.py --workdir {workdir} {flags} --config …"
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
