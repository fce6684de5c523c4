"""NLL and asymmetry of a score model over the test split: `--metric nll|asym`.

`calculate_*` writes a file per batch and keeps existing files; `read_*` averages them. Each file
holds its settings, and files with other settings are refused. The ranks of torchrun share the
batches.
"""

import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import torch
from tqdm import tqdm

import datasets
import domains
import likelihood
import sampling
from evaluation import describe_origin
from metrics import sharing
from models import jacobian
from models.compute import strict_float32
from models.trained import load_score, score_path
from samplers.progress import RoundProgress
from storage import descriptions
from storage.files import atomic_write, is_up_to_date, load_npz, read_meta, save_npz, to_json
from storage.provenance import differences
from storage.workdir import Workdir, score_entry
from utils import UserError, get_device, is_first, log, log_to, lookup

# The files of a metric, and the arrays in them.
FILES = {
    "nll": ("bpd_*.npz", "bpd", "nfe"),
    "asym": ("repeat_*.npz", "asym", "nasym", "times"),
}


class ScoreEvaluation:
    """A loaded score, and the test split that it is evaluated on."""

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: str, metric: str, use_ema: bool
    ) -> None:
        place = Workdir(workdir)
        self.folder = place.root / score_entry(metric, use_ema)
        self.device = get_device(config.device)
        self.trained = load_score(config, score_path(config, place), self.device, use_ema)
        self.config = self.trained.config
        test = datasets.load(self.config.data, "test")
        self.split = datasets.evenly(test, config.eval.num_images)
        self.domain = domains.from_config(self.config.data)
        self.starts = range(0, len(self.split), config.eval.batch_size)  # of the batches
        place.create()
        log_to(place.log_file)
        log.info("Evaluating %s on %s.", self.trained.loaded, self.device)

    def meta(self, settings: dict[str, Any]) -> dict[str, Any]:
        """All settings that the values depend on, including `settings`."""
        loaded = self.trained.loaded
        return {
            **settings,
            **self.domain.identity,
            **descriptions.identity(self.config),
            "batch_size": self.config.eval.batch_size,
            "checkpoint": loaded.checkpoint,
            "checkpoint_step": loaded.step,
            "ema": loaded.ema,
            "dataset": self.config.data.dataset,
            "data": self.split.identity["hash"],
            "images": len(self.split),
            "sde": repr(self.trained.sde),
            "seed": self.config.seed,
            "weights": loaded.fingerprint,
        }

    def write_missing(
        self,
        meta: dict[str, Any],
        path_of: Callable[[int, int], pathlib.Path],
        compute: Callable[..., dict[str, np.ndarray]],
        shapes: dict[str, tuple[int, ...]],
        repeats: int = 1,
        steps: int | None = None,
    ) -> None:
        """Write this rank's share of the files that do not exist.

        Args:
            path_of: function of a repeat and the number of a batch to the file.
            compute: function of images on the device, repeat, number and a callback to arrays.
            shapes: name of each array -> its axes before the axis of images.
            steps: how often `compute` calls its callback; None: it passes the fraction done.

        Raises:
            UserError: a value is not finite, or other settings made a file in the folder.
        """
        size = self.starts.step
        every = [
            (path_of(repeat, number), repeat, number, self.split.images[start : start + size])
            for repeat, (number, start) in itertools.product(range(repeats), enumerate(self.starts))
        ]
        expected = {
            path: {name: (*shape, len(images)) for name, shape in shapes.items()}
            for path, _, _, images in every
        }
        # All files in the folder are checked before anything is computed.
        advice = f"remove {self.folder} to calculate anew."
        kept = {
            path
            for path in sorted({*expected, *self.folder.rglob("*.npz")})
            if is_up_to_date(path, meta, advice, **expected.get(path, {}))
        }
        sharing.barrier(**meta)
        tasks = sharing.local_shard(every)
        bar = tqdm(
            total=sum(len(images) for *_, images in tasks),
            unit=self.domain.unit,
            desc=self.folder.name,
            disable=not is_first(),
        )
        done = 0
        with bar, strict_float32(self.config.compute):
            for path, repeat, number, images in tasks:
                count = len(images)
                if path not in kept:
                    images = torch.tensor(images).to(self.device)  # a copy: the map is read-only
                    callback = RoundProgress(bar, done, count, steps)
                    values = compute(images, repeat, number, callback)
                    if not all(np.isfinite(array).all() for array in values.values()):
                        raise UserError(
                            f"{path} would hold NaN or infinite values and was not written. "
                            "Check the checkpoint."
                        )
                    save_npz(path, **values, meta=to_json(meta))
                done += count
                bar.update(done - bar.n)
        sharing.barrier()
        log.info("Wrote the results of the batches to %s.", self.folder)


def calculate_nll(config: ml_collections.ConfigDict, workdir: str, use_ema: bool = False) -> None:
    """Write ``nll[_ema]/bpd_{batch}.npz`` (bpd (n,), nfe) for every batch of the test split.

    Raises:
        UserError: the checkpoint or the data are missing or do not fit; see `write_missing`.
    """
    run = ScoreEvaluation(config, workdir, "nll", use_ema)
    tolerances = {"atol": config.eval.atol, "rtol": config.eval.rtol}

    def compute(images, _, number, callback):
        noise = sampling.SeededNoise(run.device, "nll", config.seed, number)
        x = run.domain.to_density(images, noise.rand)
        log_density, _, nfe = likelihood.log_likelihood(
            run.trained.score,
            run.trained.sde,
            x,
            jacobian.rademacher(noise.randn((1, *x.shape))),
            rows=config.eval.microbatch,
            max_nfe=config.eval.max_nfe,
            callback=callback,
            **tolerances,
        )
        return {"bpd": run.domain.negative_log_likelihood(log_density).cpu().numpy(), "nfe": nfe}

    run.write_missing(
        run.meta(tolerances),
        lambda _, number: Workdir(workdir).nll(number, use_ema),
        compute,
        shapes={"bpd": ()},
    )


def calculate_asym(config: ml_collections.ConfigDict, workdir: str, use_ema: bool = False) -> None:
    """Write ``asym[_ema]/repeat_{k}.npz``: the means of Asym and NAsym at every noise level.

    Raises:
        UserError: as `calculate_nll`, or there is no such estimator.
    """
    estimator = lookup(jacobian.ESTIMATORS, config.loss.estimator, "config.loss.estimator")
    run, names = ScoreEvaluation(config, workdir, "asym", use_ema), ("asym", "nasym")
    sde, slices, repeats = run.trained.sde, config.loss.slices, config.eval.total_repeat
    times = likelihood.noise_times(config.eval.noise_levels, sde, sde.sampling_eps)
    levels = len(times)

    def compute(images, repeat, number, callback):
        x, values = run.domain.to_model(images, train=False), []
        for level, t in enumerate(times.to(run.device)):
            numbers = (config.seed, repeat, number, level)
            noise = sampling.SeededNoise(run.device, "asymmetry", *numbers)
            z = noise.randn(x.shape)
            v = jacobian.rademacher(noise.randn((slices, *x.shape)))
            t, rows = t.expand(len(x)), config.eval.microbatch
            asym = likelihood.asymmetry(run.trained.score, sde, x, t, z, v, estimator, rows)
            values.append(torch.stack(asym))
            callback()
        return dict(zip(names, torch.stack(values, dim=1).cpu().numpy()))

    def path_of(repeat, number=None):
        return Workdir(workdir).asym(repeat, number, use_ema)

    meta = run.meta({"estimator": config.loss.estimator, "slices": slices, "noise_levels": levels})
    shapes = dict.fromkeys(names, (levels,))
    run.write_missing(meta, path_of, compute, shapes, repeats, steps=levels)
    for repeat in range(repeats) if is_first() else ():
        files = [load_npz(path_of(repeat, number), *names) for number in range(len(run.starts))]
        means = {
            name: np.concatenate([file[name] for file in files], axis=1).mean(axis=1)
            for name in names
        }
        save_npz(path_of(repeat), **means, times=times.numpy(), meta=to_json(meta))


# ---------------------------------------------------------------- reading the results


def read_nll(workdir: str, use_ema: bool = False) -> dict[str, Any]:
    """Print and record the mean over the test split, in bits/dim or nats, and the mean NFE.

    Raises:
        UserError: not all batches were calculated.
    """
    files, meta = read_files(workdir, "nll", use_ema)
    bits = np.concatenate([file["bpd"] for file in files], dtype=np.float64)
    if len(bits) != meta["images"]:
        raise UserError(
            f"The NLL of {len(bits)} of {meta['images']} images exists; run --calculate again."
        )
    kind = lookup(domains.KINDS, meta.get("domain", "images"), "The domain of the files")
    result = {
        kind.likelihood_name: float(bits.mean()),
        "standard_error": float(bits.std() / math.sqrt(len(bits))),
        "nfe": float(np.mean([file["nfe"] for file in files])),
        "settings": meta,
    }
    Workdir(workdir).record(**{score_entry("nll", use_ema): result})
    print(
        f"NLL {result[kind.likelihood_name]:.4f} ± {result['standard_error']:.4f} "
        f"{kind.likelihood_unit} over {len(bits)} {kind.noun}{describe_origin(meta)}, mean NFE "
        f"{result['nfe']:.1f}, rtol {meta.get('rtol')}, atol {meta.get('atol')}"
    )
    return result


def read_asym(workdir: str, use_ema: bool = False, repeats: int | None = None) -> dict[str, Any]:
    """Print and record the means of Asym and NAsym over noise levels and repeats; plot both.

    Args:
        repeats: the number of repeats to read, from the first; None: all that exist.

    Raises:
        UserError: a repeat was not calculated.
    """
    names = "asym", "nasym"
    files, meta = read_files(workdir, "asym", use_ema)
    files = files[:repeats]
    if repeats is not None and len(files) < repeats:
        raise UserError(f"{len(files)} of {repeats} repeats exist; run --calculate for the others.")
    asym, nasym = (
        np.mean([file[name] for file in files], axis=0, dtype=np.float64) for name in names
    )
    result = {
        "asym": float(asym.mean()),
        "nasym": float(nasym.mean()),
        "repeats": len(files),
        "settings": meta,
    }
    place = Workdir(workdir)
    place.record(**{score_entry("asym", use_ema): result})
    picture = place.asym(0, ema=use_ema).with_name("asym.png")
    plot_asym(picture, files[0]["times"], asym, nasym)
    print(
        f"Asym {result['asym']:.6g}, NAsym {result['nasym']:.6g} over {len(asym)} noise levels "
        f"and {len(files)} repeats of {meta.get('images')} images{describe_origin(meta)}; plotted "
        f"in {picture}"
    )
    return result


def plot_asym(path: pathlib.Path, times: np.ndarray, asym: np.ndarray, nasym: np.ndarray) -> None:
    """A PNG with Asym and NAsym against the time of the noise level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, name, values in zip(figure.subplots(1, 2), ("Asym", "NAsym"), (asym, nasym)):
        axes.semilogy(times, np.maximum(values, np.finfo(np.float32).tiny))
        axes.set(xlabel="t", ylabel=name)
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def read_files(
    workdir: str, metric: str, use_ema: bool
) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """The arrays of the files of a metric, by number, and the meta that they share.

    Raises:
        UserError: there are none, one is damaged, or their settings differ.
    """
    (pattern, *names), place = FILES[metric], Workdir(workdir)
    place.require()
    folder = place.root / score_entry(metric, use_ema)
    paths = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise UserError(f"{folder} holds no {pattern}; run first with --calculate.")
    files = [load_npz(path, "meta", *names) for path in paths]
    metas = [read_meta(path, file["meta"]) for path, file in zip(paths, files)]
    for path, meta in zip(paths, metas):
        if changed := differences(meta, metas[0]):
            raise UserError(
                f"{path} has other settings than {paths[0]}: {', '.join(changed)}. Remove "
                f"{folder} and run --calculate again."
            )
    return files, metas[0]
