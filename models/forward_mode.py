"""Directional derivatives J v, J = ∂f/∂x, beside the values, of networks that push none.

PyTorch's forward mode pushes them. What comes out can be differentiated with respect to parameters
and x, as QC training does.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from models.compute import plain
from utils import UserError


def push(
    network: Callable, x: torch.Tensor, cond: torch.Tensor, directions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """network(x, cond) (B, …) and its derivatives J v (m, B, …) along v (m, B, C, H, W).

    A network with the attribute ``pushes_directions = True`` is called as
    ``network(x, cond, directions)`` and gives both itself; any other by `jvp`. Dropout's masks are
    those of a plain pass from the same state of the random generators, and one for all directions.

    Raises:
        UserError: a norm takes its statistics of the batch.
    """
    if getattr(network, "pushes_directions", False):
        return network(x, cond, directions)
    require_separate_images(network)

    def at(x):
        return network(x, cond)

    return jvp(at, x, directions)


def jvp(
    f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x) (B, …) and J v (m, B, …) for m directions v, shaped (m, *x.shape).

    The values are computed once and all directions together. Where PyTorch cannot vectorise `f`
    (custom functions without a rule for it) the directions take turns, each with the values anew.
    """

    def one(direction):
        return torch.func.jvp(f, (x,), (direction,))

    _load()
    with plain():
        before = _generator_state(x.device)
        try:
            return torch.func.vmap(one, out_dims=(None, 0), randomness="same")(v)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of `f` itself, it comes again below
            derivatives = []
            for direction in v:
                _set_generator_state(x.device, before)
                out, derivative = one(direction)
                derivatives.append(derivative)
            return out, torch.stack(derivatives)


def require_separate_images(network: Callable) -> None:
    """Raise a UserError if a batch norm in `network` takes its statistics of the batch.

    An image's score then depends on the others, and J is not that of one image.
    """
    modules = network.named_modules() if isinstance(network, torch.nn.Module) else ()
    for name, module in modules:
        batch_statistics = module.training or getattr(module, "running_mean", None) is None
        if isinstance(module, _BatchNorm) and batch_statistics:
            raise UserError(
                f"{type(network).__name__} has a batch norm ({name}), which in training lets the "
                "images of a batch depend on each other; products with the Jacobian of one "
                "image's score need a network without, with group or layer norms, say."
            )


@functools.cache
def _load():
    """Load what forward mode needs, which warns of PyTorch's own use of `torch.jit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.ones(()),), (torch.ones(()),))


def _generator_state(device):
    """The state of the generator that dropout on `device` draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_generator_state(device, state):
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
