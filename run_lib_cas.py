"""Classification accuracy score (CAS; Ravuri and Vinyals, NeurIPS 2019).

A classifier is trained on generated samples alone and tested on real test images.
"""

import functools
import hashlib
import os
import pathlib
from typing import Any

import ml_collections
import numpy as np

import datasets
import domains
import run_lib
from evaluation import describe_origin
from metrics.feature_sets import require_same_classes
from metrics.sample_sets import check_images, numbered_rounds, read_round
from storage import settings
from storage.provenance import differences
from storage.workdir import Workdir
from training.cas import CASTraining
from training.classifier import accuracy
from utils import UserError, is_first, log, shares

REAL = "real"  # the set-up that trains on real images, for reference


def cas(
    config: ml_collections.ConfigDict,
    workdir: str,
    setup: str | None = None,
    samples: str | os.PathLike | None = None,
) -> float:
    """Train on the samples of a set-up and test on the real test images.

    A second call continues from the resume point. The accuracy is printed and recorded in the
    workdir's ``metrics.json``, with that of the set-up "real".

    Args:
        setup: base, ours, scale or real; names the samples unless `samples` does.
        samples: folder of ``{class}/samples_{round}.npz``.

    Returns:
        The accuracy on the test split.

    Raises:
        UserError: samples are missing, or something does not fit.
    """
    settings.check(config)
    name, folder = source(config, setup, samples)
    test_split = datasets.load(config.data, "test")
    if folder is None:
        train_split, origin = datasets.load(config.data, "train"), config.data.dataset
        samples_are = {"dataset": config.data.dataset, "split": "train"}
    else:
        train_split, samples_are = read_samples(config, folder, test_split.classes)
        require_same_classes(
            test_split.class_names, samples_are.pop("classes", None), "the test set"
        )
        origin = str(folder)
    made_with = {
        "trained_on": origin,
        "samples": samples_are,
        "images": len(train_split),
        "tested_on": f"{len(test_split)} test images of {config.data.dataset}",
        "network": config.cas.model,
        "steps": config.training.n_iters,
        "batch_size": config.training.batch_size,
        "optim": config.optim.to_dict(),
        "precision": config.compute.precision,
        "seed": config.seed,
    }
    place = Workdir(workdir)
    run = place.cas(name)
    log.info("CAS %s: training on %d images of %s.", name, len(train_split), origin)
    job = run_lib.train(
        config,
        run.name,
        make_job=functools.partial(CASTraining, train_split=train_split, test_split=test_split),
    )
    job.model.eval()
    right = accuracy(job.model, test_split, config.training.batch_size, job.domain, job.device)
    if is_first():
        report(place, name, right, made_with)
    return right


def source(
    config: ml_collections.ConfigDict, setup: str | None, samples: str | os.PathLike | None
) -> tuple[str, pathlib.Path | None]:
    """The name of the CAS run and the folder of its samples, None for real images.

    The samples of a set-up are in the published folder, else in ``eval_samples``.

    Raises:
        UserError: neither `setup` nor `samples` is given, or the folder does not exist.
    """
    if setup is None and samples is None:
        raise UserError("Name the samples: --setup base, ours, scale or real, or --samples DIR.")
    if setup == REAL:
        if samples is not None:
            raise UserError("--setup real trains on real images; it takes no --samples.")
        return REAL, None
    run = f"classifier_{config.data.dataset.lower()}_{{}}_{config.classifier.model}"
    root, base = (Workdir(run.format(name)).root for name in (setup, "base"))
    places = [root / "sample", root / "eval_samples"]
    if setup == "scale":  # drawn with --scale 10, there or in the workdir of the base classifier
        places += [folder / "eval_samples_scale10" for folder in (root, base)]
    places = places if samples is None else [pathlib.Path(samples)]
    for folder in places:
        if folder.is_dir():
            return setup or "samples", folder
    raise UserError(
        f"There are no samples in {' or '.join(map(str, places))}; draw them with "
        "run_lib_sampling.py, or name another folder with --samples."
    )


def read_samples(
    config: ml_collections.ConfigDict, folder: pathlib.Path, classes: int
) -> tuple[datasets.Split, dict[str, Any]]:
    """The first ``config.eval.num_samples_all`` / classes samples of each class, and their origin.

    Raises:
        UserError: a class has too few, an image has another shape, or two files another origin.
    """
    origin = None
    images, counts = [], shares(config.eval.num_samples_all, classes)
    for label, missing in enumerate(counts):
        for _, path in numbered_rounds(folder / str(label)):
            item = read_round(0, path, "samples")
            origin = item.origin if origin is None else origin
            if changed := differences(item.origin, origin):
                raise UserError(f"The samples in {folder} differ in {', '.join(changed)}.")
            batch = item.read()
            check_images(batch.dtype, batch.shape, path, config.data)
            images.append(domains.channels_first(batch[:missing]))
            missing -= len(images[-1])
            if not missing:
                break
        if missing:
            raise UserError(
                f"{folder} lacks {missing} of the {counts[label]} samples of class {label}. Draw "
                "them with run_lib_sampling.py, or ask for fewer with "
                "--config.eval.num_samples_all."
            )
    images = np.ascontiguousarray(np.concatenate(images))
    labels = np.repeat(np.arange(classes), counts)
    # `datasets.require_same_data` refuses to continue a run with other samples.
    identity = {"samples": hashlib.sha256(images).hexdigest(), "counts": counts}
    return datasets.Split(images, labels, classes, identity=identity), dict(origin or {})


def report(place: Workdir, name: str, right: float, made_with: dict[str, Any]) -> None:
    """Record the accuracy in ``metrics.json``; print it beside the reference, if there is one."""
    place.record(**{f"cas_{name}": {"accuracy": right, "settings": made_with}})
    results = place.recorded()
    for key in (f"cas_{REAL}", f"cas_{name}"):
        if key in results:
            used = results[key]["settings"]
            log.info(
                "CAS: accuracy %.2f %% on %s, after %d steps on %d images of %s%s.",
                100 * results[key]["accuracy"],
                used["tested_on"],
                used["steps"],
                used["images"],
                used["trained_on"],
                describe_origin(used["samples"]),
            )
    if f"cas_{REAL}" not in results:
        log.info("For the accuracy with real training images run --setup real in this workdir.")
