"""Directional derivatives of any function by PyTorch's forward mode: the oracle of pushed ones."""

import torch


def jvp(f, x, v):
    """f(x) (B, …) and J v (m, B, …) for m directions."""

    def one(direction):
        return torch.func.jvp(f, (x,), (direction,))

    return torch.func.vmap(one, out_dims=(None, 0), randomness="same")(v)


class ForwardMode:
    """A function of (x, condition) as a network that pushes directions, and as a score."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x, condition, directions=None):
        if directions is None:
            return self.function(x, condition)
        return self.jvp(x, condition, directions)

    def jvp(self, x, condition, v):
        def at(x):
            return self.function(x, condition)

        return jvp(at, x, v)
