"""Atomic writes, file locks, and ``.npz`` files, which are read without unpickling."""

import contextlib
import fcntl
import glob
import json
import os
import pathlib
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from storage.provenance import code_version, differences
from utils import UserError, log

if TYPE_CHECKING:  # Pillow is optional here
    from PIL import Image

ABANDONED = 3600  # seconds after the last write to a temporary file


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside `path`, and rename it to `path` after a complete write.

    The data are synced to disk before the rename, so a crash leaves the old file or the new one.

    Raises:
        OSError: the directory cannot be written or the disk is full; `path` is untouched.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # After a failed write torch.save closes its archive, which raises a RuntimeError.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            cause.filename = cause.filename or str(path)  # the error of a full disk has no name
            raise cause from None
        raise


def remove_abandoned(path: pathlib.Path) -> None:
    """Remove the temporary files of `path` that killed processes left an hour ago."""
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > ABANDONED:
                other.unlink()


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, refusal: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` within the context.

    The system releases it when the process ends. Without a `refusal` other processes wait. On a
    file system without locks nothing is locked.

    Raises:
        UserError: with the message `refusal`, another process holds the lock.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise UserError(refusal) from None
        except OSError:
            pass
        yield


def save_npz(path: str | os.PathLike, **arrays: npt.ArrayLike) -> None:
    """Write named arrays to an uncompressed ``.npz``, atomically; equal arrays give equal bytes.

    The array `code` is the `code_version` that wrote it.
    """
    with atomic_write(path) as file:
        np.savez(file, **arrays, code=code_version())


def load_npz(
    path: str | os.PathLike, *names: str, optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Read the named arrays of an ``.npz`` as a dict; pickled objects are not loaded.

    Names in `optional` that the file lacks are left out.

    Raises:
        UserError: the file is missing, damaged or no ``.npz``, lacks one of `names`, or holds
            objects or numbers that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [*names, *(name for name in optional if name in file.files)]
            missing = [name for name in names if name not in file.files]
            arrays = {} if missing else {name: file[name] for name in found}
            held = ", ".join(file.files) or "nothing"
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except Exception as error:  # NumPy raises many types on damaged files
        raise UserError(f"{path} is not a readable .npz of plain arrays ({error}).") from None
    if missing:
        raise UserError(f"{path} holds {held}; expected {', '.join(missing)}.")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{path} holds NaN or infinite values in {name}; make it again.")
    return arrays


def npz_header(path: str | os.PathLike, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and shape of an array of an ``.npz``, from its header.

    Raises:
        UserError: the file is missing or damaged, or lacks the array.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            read = {(1, 0): npy_format.read_array_header_1_0}.get(npy_format.read_magic(member))
            shape, _, dtype = (read or npy_format.read_array_header_2_0)(member)
    except Exception as error:  # a damaged file can fail anywhere in the readers
        raise UserError(f"{path} is not a readable .npz with {name} ({error}).") from None
    return dtype, shape


def save_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def is_up_to_date(
    path: str | os.PathLike, meta: dict, advice: str, **shapes: tuple[int, ...]
) -> bool:
    """Whether the ``.npz`` at `path` has arrays of these `shapes`, made with the settings `meta`.

    A damaged file counts as missing, and is made again.

    Raises:
        UserError: the file was made with other settings; ends with `advice`.
    """
    if not pathlib.Path(path).exists():
        return False
    try:
        arrays = load_npz(path, "meta", *shapes)
        old = read_meta(path, arrays["meta"])
    except UserError as error:
        log.info("Making it again: %s", error)
        return False
    changed = differences(old, json.loads(to_json(meta)))
    found = {name: arrays[name].shape for name in shapes}
    changed += [
        f"{name} of shape {found[name]} (now {shape})"
        for name, shape in shapes.items()
        if found[name] != shape
    ]
    if changed:
        raise UserError(f"{path} was made with {', '.join(changed)}; {advice}")
    return True


def read_meta(path: str | os.PathLike, array: np.ndarray) -> dict[str, Any]:
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
            f"The settings in {path} cannot be read; remove the file, or make it again."
        )
    return meta


def to_json(value: object) -> str:
    """Compact JSON with sorted keys, the form of every `meta`."""
    return json.dumps(value, sort_keys=True)


def save_picture(path: pathlib.Path, picture: "Image.Image") -> None:
    """Write a picture (PIL) as a PNG, atomically."""
    with atomic_write(path) as file:
        picture.save(file, format="PNG")
