"""The files of a run: their paths, and the lock of its training."""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from storage.files import file_lock, save_json
from storage.settings import draws_by_class
from utils import UserError, is_first


def variant(config: ml_collections.ConfigDict) -> str:
    """The suffix of the samples' folders: ``[_{sampler}][_scale{S}]``.

    It is empty for pc at the configuration's scale of guidance, as in the published code.
    """
    sampling = config.sampling
    plain = sampling.scaling_factor if sampling.plain_scale is None else sampling.plain_scale
    name = "" if sampling.method == "pc" else f"_{sampling.method}"
    if draws_by_class(config) and sampling.scaling_factor != plain:
        name += f"_scale{sampling.scaling_factor:g}"
    return name


def score_entry(metric: str, ema: bool) -> str:
    """The folder, and entry in ``metrics.json``, of a metric of raw or EMA weights."""
    return f"{metric}_ema" if ema else metric


def some_of(names: Sequence[str], count: int = 8) -> str:
    """The first `count` names, and how many more there are."""
    more = [f"{len(names) - count} more"] if len(names) > count else []
    return ", ".join([*names[:count], *more])


def is_missing(root: pathlib.Path) -> str:
    """The message about a workdir that does not exist, with the names of others that do."""
    others = sorted(path.name for path in root.parent.glob("*/"))
    there = f"; {root.parent}/ holds {some_of(others)}" if others else ""
    return f"The workdir {root} does not exist{there}."


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The paths of a run; a relative `name` is below ``results/``, an absolute one is the path.

    ``results/W``, as shell completion gives it, is W.
    """

    name: str

    @property
    def root(self) -> pathlib.Path:
        parts = pathlib.Path(self.name).parts
        return pathlib.Path("results", *parts[1 if parts[:1] == ("results",) else 0 :])

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.root / "checkpoints"

    @property
    def resume_point(self) -> pathlib.Path:
        return self.root / "checkpoints-meta" / "checkpoint.pth"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.root / "tensorboard"

    @property
    def log_file(self) -> pathlib.Path:
        return self.root / "stdout.txt"

    def checkpoint(self, index: int | None = None) -> pathlib.Path:
        """``checkpoint_{index}.pth``, or the newest checkpoint without an index."""
        return self.checkpoints / ("checkpoint.pth" if index is None else f"checkpoint_{index}.pth")

    def numbers(self) -> list[int]:
        """The numbers of the existing checkpoints, ascending."""
        paths = self.checkpoints.glob("checkpoint_*.pth")
        names = [path.stem.removeprefix("checkpoint_") for path in paths]
        return sorted(int(name) for name in names if name.isdecimal())

    @property
    def metrics(self) -> pathlib.Path:
        return self.root / "metrics.json"

    def nll(self, batch: int, ema: bool = False) -> pathlib.Path:
        """``nll/bpd_{batch}.npz``, for EMA weights in ``nll_ema``."""
        return self.root / score_entry("nll", ema) / f"bpd_{batch}.npz"

    def asym(self, repeat: int, batch: int | None = None, ema: bool = False) -> pathlib.Path:
        """``asym/repeat_{k}.npz``, or one batch of it while it is being calculated."""
        folder = self.root / score_entry("asym", ema)
        name = f"repeat_{repeat}"
        return folder / f"{name}.npz" if batch is None else folder / name / f"batch_{batch}.npz"

    def record(self, **results: dict) -> None:
        """Add named results (values with their settings) to ``metrics.json``.

        Each gets today's `date`. A file lock lets several processes record at once.
        """
        date = datetime.date.today().isoformat()
        results = {name: {**values, "date": date} for name, values in results.items()}
        self.metrics.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(self.root / ".metrics.lock"):
            save_json(self.metrics, {**self.recorded(), **results})

    def recorded(self) -> dict[str, Any]:
        """The content of ``metrics.json``, a dict; empty where there is none.

        Raises:
            UserError: it is damaged.
        """
        try:
            known = json.loads(self.metrics.read_text())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            known = None
        if not isinstance(known, dict):
            raise UserError(f"{self.metrics} is damaged; move it away and run this again.")
        return known

    def snapshot_samples(self, step: int) -> pathlib.Path:
        return self.root / "samples" / f"iter_{step}"

    def division(self, index: int, variant: str) -> pathlib.Path:
        """``eval_sampling{variant}/{index}``: samples without classes, see `variant`."""
        return self.root / f"eval_sampling{variant}" / str(index)

    def class_samples(self, label: int, variant: str) -> pathlib.Path:
        """``eval_samples{variant}/{label}``: samples of a class."""
        return self.root / f"eval_samples{variant}" / str(label)

    def variants(self) -> list[str]:
        """The variants that have samples: first pc, then ode, then the others."""
        found = {
            path.name.removeprefix(prefix)
            for prefix in ("eval_sampling", "eval_samples")
            for path in self.root.glob(f"{prefix}*")
            if any(path.glob("*/samples_*.npz"))
        }
        return sorted(found, key=lambda name: (name != "", name != "_ode", name))

    @property
    def class_stat(self) -> pathlib.Path:
        """Images and features of the real training split, class by class."""
        return self.root / "stat" / "stat.npz"

    def latents(self, label: int, variant: str) -> pathlib.Path:
        """Features of the samples of one class, a file for each file of samples."""
        return self.root / f"latent{variant}" / str(label)

    def dataset_stat(self, variant: str) -> pathlib.Path:
        return self.root / f"stat{variant}" / "dataset_stat.npz"

    def dataset_stats(self) -> list[pathlib.Path]:
        """The `dataset_stat` of all variants, which are of the same real images."""
        return sorted(self.root.glob("stat*/dataset_stat.npz"))

    def generated_stat(self, variant: str) -> pathlib.Path:
        return self.root / f"stat{variant}" / "generated_stat.npz"

    def classwise(self, metric: str, variant: str) -> pathlib.Path:
        """Every class's values of a metric, as text."""
        return self.root / f"{metric}{variant}.txt"

    def cas(self, name: str) -> "Workdir":
        """The workdir of one CAS training, inside this one."""
        return Workdir(str(self.root.absolute() / "checkpoints_cas" / name))

    def require(self) -> None:
        """Raise a UserError if the directory does not exist; names others that do."""
        if not self.root.is_dir():
            raise UserError(is_missing(self.root))

    @contextlib.contextmanager
    def sole_trainer(self) -> Iterator[None]:
        """A context that makes the directory and locks it for one training run.

        A new directory is removed if nothing was written to it.

        Raises:
            UserError: another run has locked it, or it cannot be written.
        """
        lock = self.root / ".training"
        said = f"Another process is training in {self.root}; wait for it, or use another --workdir."
        new = [path for path in (self.root, *self.root.parents) if not path.exists()]
        self.create()
        try:
            with file_lock(lock, said):
                yield
        finally:
            if new and list(self.root.iterdir()) == [lock]:
                lock.unlink()
                for path in new:
                    with contextlib.suppress(OSError):
                        path.rmdir()

    def create(self) -> None:
        """Make the directory, on rank 0.

        Raises:
            UserError: it cannot be made or written.
        """
        if not is_first():
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise UserError(
                f"The workdir {self.root} cannot be written ({error.strerror}); "
                "give another with --workdir."
            ) from None
