"""Scalars of a training run: TensorBoard's, a table (CSV), and Weights & Biases where asked for.

Each is written by the thread that has them. tensorboardX's own writer leaves the writing to another
thread. When the disk is full that thread ends, nobody takes events from the queue before it any
more, and a training run waits forever.
"""

import contextlib
import csv
import hashlib
import os
import pathlib
import time
from types import ModuleType

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from storage.files import atomic_write
from storage.workdir import Workdir
from utils import UserError


class EventWriter:
    """Appends scalars to an event file of its own in `directory`.

    What earlier runs wrote there of `purge_step` and later steps is hidden by TensorBoard.

    Raises:
        OSError: the directory cannot be written, or later, the disk is full.
    """

    def __init__(self, directory: str | os.PathLike, purge_step: int) -> None:
        os.makedirs(directory, exist_ok=True)
        # Two runs may start within the second that the file's name tells apart.
        self._events = EventsWriter(os.path.join(directory, "events"), f".{os.getpid()}")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(step=step, summary=summary.scalar(name, value))

    def _write(self, **content):
        self._events.write_event(Event(wall_time=time.time(), **content))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class TableWriter:
    """Appends scalars to a CSV file, a row ``step,name,value`` for each.

    Rows of `purge_step` and later steps, and what a crash left of a row, are removed first.

    Raises:
        OSError: the file cannot be written, or later, the disk is full.
    """

    HEADER = ("step", "name", "value")

    def __init__(self, path: pathlib.Path, purge_step: int) -> None:
        rows = [row for row in _rows(path) if int(row[0]) < purge_step]
        with atomic_write(path, "w") as file:
            csv.writer(file, lineterminator="\n").writerows([self.HEADER, *rows])
        self._file = open(path, "a", newline="")  # noqa: SIM115 (close() closes it)
        self._rows = csv.writer(self._file, lineterminator="\n")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._rows.writerow([step, name, value])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _rows(path):
    """The whole rows of a CSV file of scalars, lists of text; none where there is no file."""
    if not path.exists():
        return
    with open(path, newline="", errors="replace") as file:
        for line in file:
            row = next(csv.reader([line]), [])
            if line.endswith("\n") and len(row) == 3 and row[0].isdecimal():
                yield row


class WandbWriter:
    """Sends scalars to the Weights & Biases project `project`, as a run of the workdir's name.

    A run that is continued in the same place is continued there.

    Raises:
        UserError: the package wandb is not installed.
    """

    def __init__(self, project: str, place: Workdir, config: dict) -> None:
        root = place.root.absolute()
        self._run = import_wandb(project).init(
            project=project,
            name=root.name,
            id=hashlib.sha256(str(root).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(root),
            config=config,
        )

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._run.log({name: value}, step=step)

    def close(self) -> None:
        self._run.finish()


def import_wandb(project: str | None) -> ModuleType | None:
    """The package wandb, which a `project` asks for; None without one.

    Raises:
        UserError: it is not installed.
    """
    if not project:
        return None
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"config.training.wandb_project is {project!r}, but the package wandb is not "
            "installed; install it (pip install wandb), or leave the field out."
        ) from None
    return wandb


class ScalarWriter:
    """Writes scalars of a run wherever they are wanted; `purge_step` is the first of this stretch.

    Args:
        project: of Weights & Biases; None: nothing is sent.
        config: the run's configuration as a dict.

    Raises:
        UserError, OSError: as the writers do.
    """

    def __init__(self, place: Workdir, purge_step: int, project: str | None, config: dict) -> None:
        self._stack = contextlib.ExitStack()
        self._writers = []
        self._open(EventWriter(place.tensorboard, purge_step))
        self._open(TableWriter(place.scalars, purge_step))
        if project:
            self._open(WandbWriter(project, place, config))

    def _open(self, writer):
        self._stack.callback(writer.close)
        self._writers.append(writer)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        for writer in self._writers:
            writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._stack.close()
