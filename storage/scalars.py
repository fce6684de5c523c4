"""Writes scalars to TensorBoard's event files in the calling thread.

``torch.utils.tensorboard.SummaryWriter`` writes in a second thread, so that a full disk prints a
traceback and the training loop gets the error some steps later.
"""

import os
import pathlib
import socket
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class ScalarWriter:
    """Appends scalars to a new event file in `directory`.

    TensorBoard hides scalars of `purge_step` and later steps in earlier files.

    Raises:
        OSError: the directory cannot be written, or later, the disk is full.
    """

    def __init__(self, directory: pathlib.Path, purge_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Two runs may start within the same second.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(open(directory / name, "ab"))  # noqa: SIM115 (see close)
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        value = Summary.Value(tag=name, simple_value=value)
        self._write(step=step, summary=Summary(value=[value]))

    def _write(self, **content):
        event = Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        self._records.close()
