"""Signals that stop a training, and the check that losses and gradients are finite."""

import dataclasses
import os
import signal
from collections.abc import Mapping

import torch

from utils import UserError


class Stopped(BaseException):
    """Raised by `StopRequest.check`; ``except Exception`` does not catch it."""


@dataclasses.dataclass
class StopRequest:
    """A context in which SIGTERM and Ctrl-C only set `signal`, which is 0 before.

    The training loop reads `signal` between steps. Validation and snapshot samples call `check`
    between batches and between a sampler's steps.
    """

    signal: int = 0

    def __enter__(self) -> "StopRequest":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, *progress: object) -> None:
        """Raise `Stopped` after a signal; a sampler's progress is ignored."""
        if self.signal:
            raise Stopped

    def _note(self, number, frame):
        # A second Ctrl-C exits at once. A second SIGTERM does not: a scheduler and torchrun may
        # each send one.
        if self.signal and number == signal.SIGINT:
            os._exit(128 + number)
        self.signal = self.signal or number


def require_finite(values: Mapping[str, torch.Tensor], step: int) -> None:
    """Raise a UserError that names the loss or gradient norm of a step, if it is not finite.

    After one such value the weights and later losses are not finite either. This waits for a GPU.
    """
    for name in ("loss", "grad_norm"):
        if not values[name].isfinite():
            raise UserError(
                f"The {name} is not finite at step {step}, or was not at an earlier one; the last "
                "checkpoint is from before. Lower --config.optim.lr or check the data."
            )
