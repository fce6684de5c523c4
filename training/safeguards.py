"""What watches over a training run: requests to stop, and numbers that are not finite."""

import dataclasses
import os
import signal
from collections.abc import Callable
from typing import Any

import torch

from utils import UserError


class Stopped(BaseException):
    """A stop was asked for; like KeyboardInterrupt nothing on the way should take it for a fault.

    Raised by `StopRequest` within `StopRequest.attempt`, and caught there.
    """


@dataclasses.dataclass
class StopRequest:
    """While active, SIGTERM and Ctrl-C only leave a note, `signal`; the loop asks for it.

    What may be left half done is called by `attempt`: a stop reaches into it.
    """

    signal: int = 0
    _reaching: bool = False

    def __enter__(self) -> "StopRequest":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def attempt(self, function: Callable, *arguments: Any) -> Any:
        """What ``function(*arguments)`` returns; None if a stop was or is asked for meanwhile.

        Python runs signal handlers between its own instructions: the function is left at the next
        one, whatever PyTorch computes until then.
        """
        try:
            try:
                self._reaching = True
                return None if self.signal else function(*arguments)
            finally:
                self._reaching = False
        except Stopped:
            return None

    def _note(self, number, frame):
        # A second Ctrl-C leaves at once. SIGTERM may come twice unasked: from a scheduler, to all
        # processes, and once more from torchrun.
        if self.signal:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.signal = number
        if self._reaching:
            raise Stopped


def heed_signals(network: torch.nn.Module) -> None:
    """Let Python handle signals within backward passes, at the output of every layer.

    On a CPU the backward pass of a published network may last minutes, none of them in Python; that
    to its input, too, where no parameter gets a gradient. On a GPU it is short, and none of its
    threads is the one that handles signals.
    """
    if all(parameter.device.type == "cpu" for parameter in network.parameters()):
        for module in network.modules():
            module.register_forward_hook(_pause_behind)


def _pause_behind(module, inputs, output):
    if isinstance(output, torch.Tensor) and output.requires_grad:
        output.register_hook(_pause)


def _pause(gradient):
    """Do nothing, in Python."""


class FiniteWatch:
    """Finds the first step with a non-finite loss or gradient without a transfer every step."""

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
