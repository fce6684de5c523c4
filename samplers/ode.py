"""RK45, by torchdiffeq, of the probability flow for samples and likelihoods."""

import dataclasses
from collections.abc import Callable

import torch
from torchdiffeq import odeint

from samplers.deterministic import no_callback
from utils import UserError

MAX_NFE = 10_000
ODECallback = Callable[[float, float, int], object]
"""Called before each step of an ODE solver with the fraction of the interval done, t and NFE."""


@dataclasses.dataclass
class WatchedField:
    """dy/dt = field(t, y) for torchdiffeq; counts evaluations, and raises where RK45 fails.

    The solver keeps its state in float64, so that small tolerances and σ = 50 lose no digits; the
    field is evaluated in float32.

    Args:
        start, end: the times between which it is integrated.
        max_nfe: evaluations after which it is stopped.
        settings: the solver's settings as text, for messages.
    """

    field: Callable
    start: float
    end: float
    max_nfe: int
    settings: str
    callback: ODECallback
    nfe: int = 0

    def __call__(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.nfe == self.max_nfe:
            raise UserError(
                f"The ODE solver took {self.nfe} evaluations from t = {self.start:g} to {t:.3g}, "
                f"on the way to {self.end:g}; raise one of {self.settings}."
            )
        self.nfe += 1
        return self.field(t.float(), y.float()).double()

    def callback_step(self, t: torch.Tensor, y: torch.Tensor, dt: torch.Tensor) -> None:
        """Called by torchdiffeq before a step of length `dt` from `t`; after a NaN, dt is 0."""
        if dt == 0 or not y.isfinite().all():
            raise UserError(
                f"The score gave NaN or infinite values near t = {t:.3g}, by evaluation {self.nfe} "
                "of the ODE solver; check the checkpoint."
            )
        if t + dt == t:
            raise UserError(
                f"The ODE solver's steps became too short to go on at t = {t:.3g}; check the "
                f"checkpoint and {self.settings}."
            )
        share = (self.start - float(t)) / (self.start - self.end)
        self.callback(share, float(t), self.nfe)


def integrate(
    field: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    y: torch.Tensor,
    start: float,
    end: float,
    *,
    rtol: float,
    atol: float,
    max_nfe: int = MAX_NFE,
    section: str = "sampling",
    callback: ODECallback = no_callback,
) -> tuple[torch.Tensor, int]:
    """Solve dy/dt = field(t, y), on y's device, by RK45 (Dormand-Prince).

    Args:
        field: of t, a scalar tensor, and y, both float32.
        rtol, atol: tolerances that set the length of the steps.
        max_nfe: limit of evaluations of the field.
        section: the section of the configuration with these fields, for messages.

    Returns:
        y at `end`, float64, and the number of evaluations.

    Raises:
        UserError: a value is not finite, or more evaluations are needed.
    """
    limits = {"rtol": rtol, "atol": atol, "max_nfe": max_nfe}
    settings = ", ".join(f"config.{section}.{name} ({value})" for name, value in limits.items())
    watched = WatchedField(field, start, end, max_nfe, settings, callback)
    times = torch.tensor([start, end], dtype=torch.float64, device=y.device)
    # A step must end at `end`: beyond it a VP score does not exist.
    options = {"step_t": times[1:]}
    path = odeint(
        watched, y.double(), times, rtol=rtol, atol=atol, method="dopri5", options=options
    )
    return path[-1], watched.nfe
