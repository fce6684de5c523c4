"""What every module may lean on: errors for the user, whole-or-nothing files, the log, the device.

Nothing here knows about score models; arrows point only towards this file.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import math
import os
import pathlib
import sys
import uuid
import zipfile

import filelock
import numpy as np
from numpy.lib import format as npy_format

from provenance import code_version, differences

# What a file may unpack to: this many bytes, or this many times its own size.
ALWAYS_PLAUSIBLE = 2**28
LARGEST_COMPRESSION = 20

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


def take(model, names):
    """The fields `names` of ``config.model``, a dict.

    Raises:
        UserError: one is missing; names it.
    """
    for name in names:
        if name not in model:
            raise UserError(
                f"config.model.{name} is missing, which the model {model.name} needs; take a "
                "configuration that was made for this model."
            )
    return {name: model[name] for name in names}


def require_positive(value, field):
    """Return `value` if it is an integer above zero, or raise a UserError that names `field`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{field} is {value!r}; expected a whole number of at least 1.")
    return value


def seed_for(purpose, *numbers):
    """A 63-bit seed of the stream of random numbers that serves `purpose`, a name.

    A hash of the name and the integers `numbers`, the run's seed first: equal for equal ones alone.
    """
    text = json.dumps([purpose, *map(int, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


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
    _remove_abandoned(path)
    temporary, file = _create_beside(path, mode.replace("w", "x"))
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # When a write of its own fails torch.save closes its archive, which fails in its turn.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            cause.filename = cause.filename or str(path)  # a full disk has no name of its own
            raise cause from None
        raise


def _create_beside(path, mode):
    """A new file beside `path`, locked and open, and its name."""
    while True:
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
        file = open(temporary, mode)  # noqa: SIM115 (the caller closes it)
        lock(file)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # another process took it for abandoned before it was locked


def _remove_abandoned(path):
    """Remove what killed processes left of `path`; its size may be that of a checkpoint."""
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), open(other, "rb") as file:
            if lock(file):
                other.unlink()


def lock(file, without_locks=False):
    """Lock an open file until it is closed or its process ends; whether nobody else has the lock.

    `without_locks` is the answer of a file system that knows none.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without_locks
    return True


@contextlib.contextmanager
def turn(path):
    """Within the context this process alone has the lock `path`; others wait for their turn.

    The system drops it when its holder dies. On a file system that knows no locks nobody waits.
    """
    lock = filelock.FileLock(path)
    with contextlib.suppress(NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def save_npz(path, **arrays):
    """Write named arrays to an uncompressed ``.npz``, atomically; equal arrays give equal bytes.

    The array `code` says which code wrote it, see `code_version`.
    """
    with atomic_write(path) as file:
        np.savez(file, **arrays, code=code_version())


def load_npz(path, *names, optional=()):
    """Read the named arrays of an ``.npz`` as a dict; pickled objects are never loaded.

    The names in `optional` are left out where the file lacks them. The file may be anybody's: what
    it claims to hold is compared with its size before memory is taken.

    Raises:
        UserError: the file is missing or damaged, holds anything but plain arrays, lacks one of
            `names`, claims to hold more than a file of its size can, or holds NaN.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in names if name not in members]
            if missing:
                raise UserError(
                    f"{path} holds {', '.join(members) or 'nothing'}; "
                    f"expected {', '.join(missing)}."
                )
            found = [*names, *(name for name in optional if name in members)]
            require_plausible(path, sum(members[name].file_size for name in found))
            arrays = {name: _read_npy(archive, members[name]) for name in found}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file can fail anywhere in the readers
        raise UserError(f"{path} is not a readable .npz of plain arrays ({error}).") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{path} holds NaN or infinite values in {name}; make it again.")
    return arrays


def _read_npy(archive, info):
    """One array of an ``.npz``, if its header and its member of the archive agree in size."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed as NumPy never does")
    headers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    with archive.open(info) as member:
        shape, _, dtype = headers[npy_format.read_magic(member)](member)
        claimed = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biufU" or claimed != info.file_size - member.tell():
            raise ValueError(f"{info.filename} is no array of {dtype} and shape {shape}")
    with archive.open(info) as member:
        return npy_format.read_array(member, allow_pickle=False)


def require_plausible(path, claimed):
    """Raise a UserError if the file at `path` is too small to hold `claimed` bytes, compressed.

    Real images and features shrink a few times, a bomb a thousand times.
    """
    size = os.stat(path).st_size
    if claimed > max(ALWAYS_PLAUSIBLE, LARGEST_COMPRESSION * size):
        raise UserError(
            f"{path} has {size} bytes and claims to hold {claimed}; that is no honest file of "
            "this kind. Fetch or make it again."
        )


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
    # A process may have been killed at a file that another has written meanwhile.
    _remove_abandoned(pathlib.Path(path))
    if not pathlib.Path(path).exists():
        return False
    try:
        arrays = load_npz(path, "meta", *shapes)
        old = read_meta(path, arrays["meta"])
    except UserError as error:
        log.info("Making it again: %s", error)
        return False
    changed = differences(old, json.loads(to_json(meta)))
    changed += [name for name, shape in shapes.items() if arrays[name].shape != shape]
    if changed:
        raise UserError(f"{path} was made with other {', '.join(changed)}; {advice}")
    return True


def read_meta(path, array):
    """The dict in the `meta` array of the file at `path`.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        meta = json.loads(str(array))
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise UserError(
            f"{path} does not say in a readable way what made it; remove it, or make it again."
        )
    return meta


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


# ---------------------------------------------------------------- the log and the device


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
    logging.raiseExceptions = False  # a log that cannot be written is no reason to stop, or to say
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
