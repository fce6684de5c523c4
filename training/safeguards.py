"""Signals that stop a training, and the check for losses and gradients that are not finite."""

import dataclasses
import os
import signal

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


class FiniteWatch:
    """Records the first step with a non-finite loss or gradient, without waiting for a GPU."""

    NONE = 2**62
    NAMES = ("loss", "gradient")

    def __init__(self, device: torch.device) -> None:
        self.first_bad = torch.full((len(self.NAMES),), self.NONE, device=device)

    def see(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        finite = torch.isfinite(torch.stack([loss, grad_norm]))
        self.first_bad = torch.where(finite, self.first_bad, self.first_bad.clamp(max=step))

    def check(self) -> None:
        """Raise a UserError that names the first step, if there was one, and what went wrong."""
        steps = self.first_bad.tolist()
        step = min(steps)
        if step != self.NONE:
            raise UserError(
                f"The {self.NAMES[steps.index(step)]} stopped being finite at step {step}; the "
                "last checkpoint is from before. Lower --config.optim.lr or look at the data."
            )
