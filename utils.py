"""What every module may lean on: errors for the user, whole-or-nothing files, the workdir.

Nothing here knows about score models; arrows point only towards this file.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
import tempfile
import uuid
import zipfile

import numpy as np

log = logging.getLogger("dlsm_qc")


class UserError(Exception):
    """A mistake of the caller: its text says what was given, what was expected, what to do."""


def lookup(table, name, field):
    """Return ``table[name]``.

    Raises:
        UserError: `name` is not in the table; names the config `field` and the choices.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        choices = ", ".join(sorted(map(str, table)))
        raise UserError(f"{field} is {name!r}; expected one of: {choices}.") from None


def require_positive(value, field):
    """Return `value` if it is an integer above zero, or raise a UserError that names `field`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{field} is {value!r}; expected a whole number of at least 1.")
    return value


def seed_for(*entropy):
    """A 63-bit seed from several non-negative integers, distinct streams for distinct tuples."""
    state = np.random.SeedSequence(entropy).generate_state(2, dtype=np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])


def shares(total, parts):
    """Sizes of `parts` shares that add up to `total` and differ by one at the most."""
    share, rest = divmod(total, parts)
    return [share + (i < rest) for i in range(parts)]


def rank_and_size():
    """The number of this process among those that torchrun started, and how many: else 0, 1."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_first():
    """Whether this is the process that logs and writes what is written once: rank 0."""
    return rank_and_size()[0] == 0


# ---------------------------------------------------------------- files, whole or not at all


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; it takes that name only after a complete write.

    The data reach the disk before the rename, so a crash leaves the old file or the new one.

    Raises:
        OSError: the directory cannot be written or the disk is full; `path` is untouched.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, mode.replace("w", "x")) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_npz(path, **arrays):
    """Write named arrays to an uncompressed ``.npz``, atomically; equal arrays give equal bytes."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_npz(path, *names, optional=()):
    """Read the named arrays of an ``.npz`` as a dict; pickled objects are never loaded.

    The names in `optional` are left out where the file lacks them.

    Raises:
        UserError: the file is missing, damaged, holds objects, or lacks one of `names`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise UserError(
                    f"{path} holds {', '.join(archive.files) or 'nothing'}; "
                    f"expected {', '.join(missing)}."
                )
            found = [name for name in optional if name in archive.files]
            return {name: archive[name] for name in (*names, *found)}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npz of plain arrays ({error}).") from None


def save_json(path, value):
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def stands(path, meta, advice, **shapes):
    """Whether the ``.npz`` at `path` is whole: it has arrays of these `shapes`, made with `meta`.

    A damaged file counts as missing, and is made again. `meta` is a dict that the file carries as
    JSON.

    Raises:
        UserError: the file is whole, but was made otherwise; ends with `advice`.
    """
    if not pathlib.Path(path).exists():
        return False
    try:
        arrays = load_npz(path, "meta", *shapes)
        old = json.loads(str(arrays["meta"]))
    except (UserError, json.JSONDecodeError) as error:
        log.info("Making it again: %s", error)
        return False
    new = json.loads(to_json(meta))
    changed = [name for name in new if old.get(name) != new[name]]
    changed += [name for name, shape in shapes.items() if arrays[name].shape != shape]
    if changed:
        raise UserError(f"{path} was made with other {', '.join(changed)}; {advice}")
    return True


def to_json(value):
    """Compact JSON with sorted keys, the form of every `meta`."""
    return json.dumps(value, sort_keys=True)


def image_grid(images, columns):
    """uint8 images (N, H, W, C) as one picture (PIL); images under 32 pixels are enlarged."""
    import torch
    from PIL import Image
    from torchvision.utils import make_grid

    grid = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), nrow=columns, padding=1)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    zoom = max(1, 32 // images.shape[1])
    size = (picture.width * zoom, picture.height * zoom)
    return picture.resize(size, Image.Resampling.NEAREST)


def save_image_grid(path, images, columns=None):
    """Write `image_grid` of the images as a PNG; nearly square unless `columns` are given."""
    picture = image_grid(images, columns or max(1, int(len(images) ** 0.5)))
    with atomic_write(path) as file:
        picture.save(file, format="PNG")


# ---------------------------------------------------------------- where a run lives


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Every path of a run; a relative `name` lies under ``results/``, an absolute one is itself."""

    name: str

    @property
    def root(self):
        return pathlib.Path("results") / self.name

    @property
    def checkpoints(self):
        return self.root / "checkpoints"

    @property
    def resume_point(self):
        return self.root / "checkpoints-meta" / "checkpoint.pth"

    @property
    def tensorboard(self):
        return self.root / "tensorboard"

    @property
    def log_file(self):
        return self.root / "stdout.txt"

    def checkpoint(self, index=None):
        """``checkpoint_{index}.pth``, or the newest checkpoint without an index."""
        return self.checkpoints / ("checkpoint.pth" if index is None else f"checkpoint_{index}.pth")

    @property
    def metrics(self):
        return self.root / "metrics.json"

    def nll(self, batch):
        return self.root / "nll" / f"bpd_{batch}.npz"

    def asym(self, repeat, batch=None):
        """``asym/repeat_{k}.npz``, or one batch of it while it is being calculated."""
        folder = self.root / "asym"
        name = f"repeat_{repeat}"
        return folder / f"{name}.npz" if batch is None else folder / name / f"batch_{batch}.npz"

    def record(self, **results):
        """Add named results (values with the settings that made them) to ``metrics.json``."""
        try:
            known = json.loads(self.metrics.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            known = {}
        save_json(self.metrics, {**known, **results})

    def snapshot_samples(self, step):
        return self.root / "samples" / f"iter_{step}"

    def division(self, index, ode):
        return self.root / ("eval_sampling_ode" if ode else "eval_sampling") / str(index)

    def class_samples(self, label, ode):
        return self.root / ("eval_samples_ode" if ode else "eval_samples") / str(label)

    @property
    def class_stat(self):
        """Images and features of the real training split, class by class."""
        return self.root / "stat" / "stat.npz"

    def latents(self, label, ode):
        """Features of the samples of one class, a file for each of theirs."""
        return self.root / ("latent_ode" if ode else "latent") / str(label)

    def dataset_stat(self, ode):
        return self.root / ("stat_ode" if ode else "stat") / "dataset_stat.npz"

    def generated_stat(self, ode):
        return self.root / ("stat_ode" if ode else "stat") / "generated_stat.npz"

    def classwise(self, metric, ode):
        """Every class's values of a metric, as text."""
        return self.root / f"{metric}{'_ode' if ode else ''}.txt"

    def cas(self, name):
        """The workdir of one CAS training, a run of its own inside this one."""
        return Workdir(str(self.root.absolute() / "checkpoints_cas" / name))

    def check(self):
        """Raise a UserError if the directory cannot be made or written; leave nothing behind.

        Of several processes the first does this, and `create`, for all.
        """
        if not is_first():
            return
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        try:
            self.create()
        finally:
            for path in missing:
                with contextlib.suppress(OSError):
                    path.rmdir()

    def create(self):
        """Make the directory.

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


def log_to(path=None):
    """Send the log to standard output and, with `path`, to that file too (appended).

    Of several processes the first logs; the others only warn, on standard output.
    """
    handlers = [logging.StreamHandler(sys.stdout)]
    if path is not None and is_first():
        handlers.append(logging.FileHandler(path))
    for handler in log.handlers:
        handler.close()
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.handlers = handlers
    log.setLevel(logging.INFO if is_first() else logging.WARNING)
    log.propagate = False


def get_device(name):
    """The torch device of ``config.device``; ``auto`` is CUDA where there is one, else the CPU.

    Each of the processes that torchrun started on a machine has a GPU of its own.

    Raises:
        UserError: the name is no device, or CUDA is asked for and absent.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"config.device is {name!r}; expected auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"config.device is {name!r}, but this machine shows no CUDA GPU to PyTorch; "
            "use --config.device=cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"There is no {device}: this machine shows {torch.cuda.device_count()} CUDA GPUs to "
            "PyTorch. Start at most one process for each."
        )
    return device
