"""Reads the features of samples and of real images that `encoding` wrote, for the metrics."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np

from metrics.sample_sets import find, parts_of
from storage.files import load_npz, read_meta
from storage.settings import draws_by_class
from storage.workdir import Workdir, variant
from utils import UserError, shares

# Published feature files do not name their network. They are of the FID Inception network, and are
# comparable with both of its versions here.
PUBLISHED_FEATURES = ("inception-2015-12-05", "inception-tfhub")


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    Attributes:
        pool: (N, D).
        logits: (N, K); None for real images, whose logits no metric reads.
        extractors: possible names of the feature network; one, if the file names it.
        origin: the settings of the images, a dict; empty if unknown.
        source: the file or folder of the features.
        sizes: number of images of each class, in the order of the rows; None without classes.
    """

    pool: np.ndarray
    logits: np.ndarray | None
    extractors: tuple[str, ...]
    origin: dict
    source: pathlib.Path
    sizes: list[int] | None = None

    def by_class(self) -> Iterator["FeatureSet"]:
        """The features of each class."""
        ends = np.cumsum(self.sizes)
        for start, end in zip(ends - self.sizes, ends):
            logits = None if self.logits is None else self.logits[start:end]
            yield dataclasses.replace(self, pool=self.pool[start:end], logits=logits, sizes=None)


def open_sets(
    config: ml_collections.ConfigDict, workdir: str, dataset_stat: str | os.PathLike | None = None
) -> tuple[FeatureSet, FeatureSet]:
    """The real and the generated `FeatureSet` of a run.

    Raises:
        UserError: one is missing; the message names the flag that writes it.
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
    """The features of the real images; raises as `open_sets`.

    Without classes: `dataset_stat`, else the workdir's own file, else the published one of the data
    set, ``results/{dataset}_stats.npz``.
    """
    place = Workdir(workdir)
    if draws_by_class(config):
        return _open([place.class_stat], "--stat writes them", "size")
    if dataset_stat is not None:
        return _open([pathlib.Path(dataset_stat)], "name another file with --dataset_stat")
    published = pathlib.Path("results") / f"{config.data.dataset.lower()}_stats.npz"
    paths = [place.dataset_stat(variant(config)), *place.dataset_stats(), published]
    return _open(paths, "--encode_dataset writes them, or name a file with --dataset_stat")


def open_generated(config: ml_collections.ConfigDict, workdir: str) -> FeatureSet:
    """The features of the samples; raises as `open_sets`.

    With classes, the first ``config.eval.num_samples_all`` / classes of each class.
    """
    place = Workdir(workdir)
    if not draws_by_class(config):
        return _open([place.generated_stat(variant(config))], "--encode writes them", "logit")
    parts = parts_of(config, place, place.latents)
    sizes = shares(config.eval.num_samples_all, len(parts))
    for part, size in zip(parts, sizes, strict=True):
        if size > part.expected:
            raise UserError(
                f"config.eval.num_samples_all asks for {size} samples of {part.name}, but "
                f"config.eval.num_samples is {config.eval.num_samples}, {part.expected} of "
                f"{part.name}; ask for fewer."
            )
    pools, logits = [], []
    classes = find(parts, "pool_3", "--latent writes what is missing.")
    for rounds, size in zip(classes, sizes, strict=True):
        if not rounds:  # fewer samples than classes
            continue
        files = [load_npz(item.path, "pool_3", "logits") for item in rounds]
        pools.append(np.concatenate([file["pool_3"] for file in files])[:size])
        logits.append(np.concatenate([file["logits"] for file in files])[:size])
    content = np.concatenate(pools), np.concatenate(logits)
    return FeatureSet(*content, *_claims(classes[0][0].origin), parts[0].folder.parent, sizes)


def require_same_classes(
    real: Sequence[str] | None, generated: Sequence[str] | None, source: object
) -> None:
    """Check that equal labels have equal class names, if both lists of names are known.

    Raises:
        UserError: they differ; `source` names the real images.
    """
    if real and generated and list(real) != list(generated):
        raise UserError(
            f"The samples are of the classes {', '.join(generated)}, and {source} of "
            f"{', '.join(real)}; equal labels mean different classes. Restore the folders' names."
        )


def _open(paths, advice, *more):
    """The set in the first of `paths` that exists, with the arrays in `more`: `logit`, `size`."""
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(f"There are no features in {' or '.join(map(str, paths))}; {advice}.")
    content = load_npz(path, "pool_3", *more, optional=("meta",))
    sizes = content["size"].tolist() if "size" in content else None
    claims = _claims(read_meta(path, content["meta"]) if "meta" in content else {})
    return FeatureSet(content["pool_3"], content.get("logit"), *claims, path, sizes)


def _claims(meta):
    """The feature networks that a file with this `meta` may be of, and the origin of its images."""
    return ((meta["features"],), meta["samples"]) if meta else (PUBLISHED_FEATURES, {})
