"""NLL and asymmetry of a score model over the test split, in batches that can be resumed.

`calculate_*` writes a file per batch and skips those that stand; `read_*` averages them. Each
file carries what made it, and batches made otherwise are never mixed. Processes that torchrun
started share the batches out (`sharing`).
"""

import dataclasses
import itertools
import math
import pathlib
from typing import Any

import ml_collections
import numpy as np
import torch
from tqdm import tqdm

import datasets
import domains
import likelihood
import sampling
from metrics import sharing
from models import jacobian
from models.trained import TrainedScore, load_score
from samplers.progress import RoundProgress
from storage import descriptions
from storage.files import atomic_write, is_up_to_date, load_npz, read_meta, save_npz, to_json
from storage.provenance import differences
from storage.workdir import Workdir, score_entry
from utils import UserError, get_device, is_first, log, log_to, lookup


@dataclasses.dataclass(frozen=True)
class TestRun:
    """A loaded score and the test split it is evaluated on, in batches."""

    __test__ = False  # no test case of pytest's

    config: ml_collections.ConfigDict
    place: Workdir
    device: torch.device
    trained: TrainedScore
    split: datasets.Split
    domain: domains.Images | domains.Points

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, workdir: str, use_ema: bool) -> "TestRun":
        """Check the settings, load the checkpoint and the test split, and open the workdir."""
        device, place = get_device(config.device), Workdir(workdir)
        place.check()
        path = place.checkpoint(config.eval.checkpoint_idx)
        trained = load_score(config, path, device, use_ema)
        config = trained.config
        split = datasets.load(config.data, "test")
        place.create()
        log_to(place.log_file)
        log.info("Evaluating %s on %s.", trained.loaded, device)
        return cls(config, place, device, trained, split, domains.from_config(config.data))

    @property
    def batch_size(self) -> int:
        return self.config.eval.batch_size

    @property
    def batches(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def size(self, batch: int) -> int:
        return min(self.batch_size, len(self.split) - batch * self.batch_size)

    def images(self, batch: int) -> torch.Tensor:
        """The batch's images, as they are stored, on the device."""
        start = batch * self.batch_size
        # A copy, because the mapped file is read-only and PyTorch knows no such tensors.
        images = torch.tensor(self.split.images[start : start + self.batch_size])
        return images.to(self.device)

    def meta(self, **settings: Any) -> dict[str, Any]:
        loaded = self.trained.loaded
        return {
            **settings,
            **self.domain.identity,
            **descriptions.identity(self.config),
            "batch_size": self.batch_size,
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


# ---------------------------------------------------------------- NLL


def calculate_nll(config: ml_collections.ConfigDict, workdir: str, use_ema: bool = False) -> None:
    """Write ``nll[_ema]/bpd_{batch}.npz`` (bpd (n,), nfe) for every batch of the test split.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    run = TestRun.open(config, workdir, use_ema)
    tolerances = {"atol": config.eval.atol, "rtol": config.eval.rtol}
    meta = run.meta(**tolerances)
    advice = f"remove {run.place.nll(0, use_ema).parent} to calculate anew."
    own = sharing.own(range(run.batches))
    sharing.wait(**meta)
    done = 0
    with progress_bar(sum(map(run.size, own)), "NLL") as bar:
        for batch in own:
            path = run.place.nll(batch, use_ema)
            if not is_up_to_date(path, meta, advice, bpd=(run.size(batch),), nfe=()):
                noise = sampling.SeededNoise(run.device, "nll", config.seed, batch)
                x = run.domain.to_density(run.images(batch), noise.rand)
                v = jacobian.rademacher(noise.randn((1, *x.shape)))
                rows = config.eval.microbatch
                density, _, nfe = likelihood.log_likelihood(
                    run.trained.score,
                    run.trained.sde,
                    x,
                    v,
                    rows=rows,
                    max_nfe=config.eval.max_nfe,
                    callback=RoundProgress(bar, done, run.size(batch), None),
                    **tolerances,
                )
                bits = run.domain.negative_log_likelihood(density).cpu().numpy()
                require_finite(bits, f"The likelihood of batch {batch}")
                save_npz(path, bpd=bits, nfe=nfe, meta=to_json(meta))
            done += run.size(batch)
            bar.update(done - bar.n)
    sharing.wait()
    log.info("Wrote %d batches to %s.", run.batches, run.place.nll(0, use_ema).parent)


def read_nll(workdir: str, use_ema: bool = False) -> dict[str, Any]:
    """Print and record the mean over the test split, in bits/dim or nats, and the mean NFE.

    Raises:
        UserError: nothing is calculated, or not all of it; says what to run.
    """
    place = Workdir(workdir)
    command = command_for("nll", workdir, use_ema)
    first_path = place.nll(0, use_ema)
    first, meta = open_result(first_path, command, "bpd", "nfe")
    kind = lookup(domains.KINDS, meta.get("domain", "images"), f"The domain in {first_path}")
    files = [first] + [
        open_result(place.nll(batch, use_ema), command, "bpd", "nfe", same_as=meta)[0]
        for batch in range(1, math.ceil(meta["images"] / meta["batch_size"]))
    ]
    bits = np.concatenate([file["bpd"] for file in files], dtype=np.float64)
    result = {
        kind.likelihood_name: float(bits.mean()),
        "standard_error": float(bits.std() / math.sqrt(len(bits))),
        "nfe": float(np.mean([file["nfe"] for file in files])),
        "settings": meta,
    }
    place.record(**{score_entry("nll", use_ema): result})
    print(
        f"NLL {result[kind.likelihood_name]:.4f} ± {result['standard_error']:.4f} "
        f"{kind.likelihood_unit} over {len(bits)} {kind.noun}{origin_in_words(meta)}, mean NFE "
        f"{result['nfe']:.1f}, rtol {meta.get('rtol')}, atol {meta.get('atol')}"
    )
    return result


# ---------------------------------------------------------------- Asym and NAsym


def calculate_asym(config: ml_collections.ConfigDict, workdir: str, use_ema: bool = False) -> None:
    """Write ``asym[_ema]/repeat_{k}.npz``: the means of Asym and NAsym at every noise level.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    estimator = lookup(jacobian.ESTIMATORS, config.loss.estimator, "config.loss.estimator")
    run = TestRun.open(config, workdir, use_ema)
    sde, slices = run.trained.sde, config.loss.slices
    times = likelihood.noise_times(config.eval.noise_levels, sde, sde.sampling_eps)
    meta = run.meta(
        estimator=config.loss.estimator, slices=slices, noise_levels=config.eval.noise_levels
    )
    levels, repeats, done = len(times), config.eval.total_repeat, 0
    advice = f"remove {run.place.asym(0, ema=use_ema).parent} to calculate anew."
    own = sharing.own(list(itertools.product(range(repeats), range(run.batches))))
    sharing.wait(**meta)
    with progress_bar(sum(run.size(batch) for _, batch in own) * levels, "Asym") as bar:
        for repeat, batch in own:
            path = run.place.asym(repeat, batch, use_ema)
            shape = (levels, run.size(batch))
            if not is_up_to_date(path, meta, advice, asym=shape, nasym=shape):
                values = _asym_of_batch(run, times, slices, estimator, repeat, batch, bar)
                require_finite(values, f"The asymmetry of batch {batch}")
                save_npz(path, asym=values[0], nasym=values[1], meta=to_json(meta))
            done += run.size(batch) * levels
            bar.update(done - bar.n)
    sharing.wait()
    if is_first():
        for repeat in range(repeats):
            paths = [run.place.asym(repeat, batch, use_ema) for batch in range(run.batches)]
            files = [load_npz(path, "asym", "nasym") for path in paths]
            means = {
                name: np.concatenate([file[name] for file in files], axis=1).mean(axis=1)
                for name in ("asym", "nasym")
            }
            path = run.place.asym(repeat, ema=use_ema)
            save_npz(path, **means, times=times.numpy(), meta=to_json(meta))
    log.info("Wrote %d repeats to %s.", repeats, run.place.asym(0, ema=use_ema).parent)


def progress_bar(images: int, name: str) -> tqdm:
    """A bar of the first process's own `images`; the others show none."""
    return tqdm(total=images, unit="img", desc=name, disable=not is_first())


def require_finite(values: np.ndarray, name: str) -> None:
    """Raise a UserError if the array `values` is not finite everywhere."""
    if not np.isfinite(values).all():
        raise UserError(
            f"{name} came out with NaN or infinite values; nothing was written. Look at the "
            "checkpoint."
        )


def _asym_of_batch(run, times, slices, estimator, repeat, batch, bar):
    """Asym and NAsym (2, levels, n) of one batch."""
    x = run.domain.to_model(run.images(batch), train=False)
    values = []
    for level, t in enumerate(times.to(run.device)):
        numbers = (run.config.seed, repeat, batch, level)
        noise = sampling.SeededNoise(run.device, "asymmetry", *numbers)
        z = noise.randn(x.shape)
        v = jacobian.rademacher(noise.randn((slices, *x.shape)))
        asym = likelihood.asymmetry(
            run.trained.score,
            run.trained.sde,
            x,
            t.expand(len(x)),
            z,
            v,
            estimator,
            rows=run.config.eval.microbatch,
        )
        values.append(torch.stack(asym))
        bar.update(len(x))
    return torch.stack(values, dim=1).cpu().numpy()


def read_asym(workdir: str, use_ema: bool = False, repeats: int | None = None) -> dict[str, Any]:
    """Print and record the means of Asym and NAsym over noise levels and repeats; plot both.

    Args:
        repeats: how many repeats are read, the first ones; None: all that are there.

    Raises:
        UserError: nothing is calculated, or not as many repeats; says what to run.
    """
    place = Workdir(workdir)
    command = command_for("asym", workdir, use_ema)
    names = ("asym", "nasym")
    first, meta = open_result(place.asym(0, ema=use_ema), command, *names, "times")
    files = [first]
    while (len(files) < repeats) if repeats else place.asym(len(files), ema=use_ema).exists():
        path = place.asym(len(files), ema=use_ema)
        files.append(open_result(path, command, *names, same_as=meta)[0])
    asym, nasym = (
        np.mean([file[name] for file in files], axis=0, dtype=np.float64) for name in names
    )
    result = {
        "asym": float(asym.mean()),
        "nasym": float(nasym.mean()),
        "repeats": len(files),
        "settings": meta,
    }
    place.record(**{score_entry("asym", use_ema): result})
    picture = place.asym(0, ema=use_ema).with_name("asym.png")
    plot_asym(picture, first["times"], asym, nasym)
    print(
        f"Asym {result['asym']:.6g}, NAsym {result['nasym']:.6g} over {len(asym)} noise levels "
        f"and {len(files)} repeats of {meta.get('images')} images{origin_in_words(meta)}; plotted "
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


# ---------------------------------------------------------------- reading what stands


def command_for(metric: str, workdir: str, use_ema: bool) -> str:
    """The command that calculates a metric, without its configuration."""
    ema = " --ema" if use_ema else ""
    return f"run_lib_evaluation_{metric}.py --workdir {workdir} --calculate{ema}"


def origin_in_words(meta: dict[str, Any]) -> str:
    """Which data and weights a `meta` says a number is of; older files say less."""
    data = f" of {meta['dataset']}" if "dataset" in meta else ""
    kind = {True: "EMA weights, ", False: "raw weights, "}.get(meta.get("ema"), "")
    step = meta.get("checkpoint_step")
    where = f"{meta.get('checkpoint', 'checkpoint')}, " + (
        "no step" if step is None else f"step {step}"
    )
    return f"{data} ({kind}{where})"


def open_result(
    path: pathlib.Path, command: str, *names: str, same_as: dict[str, Any] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the meta of a file, made with the meta `same_as` if one is given.

    Raises:
        UserError: it is missing or damaged, or was made otherwise.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; run first: python {command} --config …")
    arrays = load_npz(path, "meta", *names)
    meta = read_meta(path, arrays["meta"])
    if changed := differences(meta, meta if same_as is None else same_as):
        raise UserError(
            f"{path} was made otherwise than its neighbours: {', '.join(changed)}. Remove "
            f"{path.parent} and run: python {command} --config …"
        )
    return arrays, meta
