"""TensorBoard's scalars, written by the thread that has them.

tensorboardX's own writer leaves the writing to another thread. When the disk is full that thread
ends, nobody takes events from the queue before it any more, and a training run waits forever.
"""

import os
import time

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class ScalarWriter:
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
