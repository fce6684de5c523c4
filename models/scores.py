"""Scores: functions `score(x, t)` from (B, C, H, W) and (B,) to (B, C, H, W).

Losses, samplers and likelihoods take such a function and know nothing of networks. For products
with its Jacobian J = ∂s/∂x a score has a method `jvp`.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable

import torch

from models.compute import plain
from models.forward_mode import push
from models.labels import NO_LABEL
from sde_lib import SDE, expand


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A network of x (B, C, H, W), a condition (B,) and labels, at the labels y (B,) or (1,).

    It takes several copies of a batch, one after the other, with the labels of one.
    """

    net: Callable
    labels: torch.Tensor

    @property
    def pushes_directions(self) -> bool:
        """Whether the network pushes directions itself, see `forward_mode`."""
        return getattr(self.net, "pushes_directions", False)

    def __call__(
        self, x: torch.Tensor, cond: torch.Tensor, *directions: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        labels = self.labels.repeat(len(x) // len(self.labels))
        return self.net(x, cond, *directions, labels=labels)


@dataclasses.dataclass(frozen=True)
class Score:
    """∇ₓ log p_t(x) as a network models it: net(x, σ(t)) for VE, −net(x, 999t)/std(t) for VP."""

    net: Callable
    sde: SDE
    continuous: bool = True

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, scale = self.sde.conditioning(t, self.continuous)
        return expand(scale, x) * self.net(x, cond)

    def jvp(
        self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """s (B, C, H, W) and J v, shaped as `v` (m, B, C, H, W), pushed through the network.

        Both can be differentiated with respect to parameters and x.
        """
        cond, scale = self.sde.conditioning(t, self.continuous)
        out, derivatives = push(self.net, x, cond, v)
        return expand(scale, x) * out, expand(scale, x) * derivatives

    def given(self, labels: torch.Tensor) -> "Score | EnergyScore":
        """The score s(x, t, y) of labels y (B,) or (1,), of a network that takes labels."""
        return dataclasses.replace(self, net=Labelled(self.net, labels))


@dataclasses.dataclass(frozen=True)
class EnergyScore:
    """The score ∇ₓE of a constrained model, E = −½‖h‖²/σ with h = net(x, σ) (VE only).

    Its Jacobian is symmetric by construction.
    """

    net: Callable
    sde: SDE

    given = Score.given

    def energy(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """E (B,) at x (B, C, H, W)."""
        cond, _ = self.sde.conditioning(t, continuous=True)
        return -0.5 * self.net(x, cond).square().flatten(1).sum(1) / cond

    def slopes(self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """v·∇ₓE (m, B), the derivatives of the energy along v (m, B, C, H, W)."""
        cond, _ = self.sde.conditioning(t, continuous=True)
        h, derivatives = push(self.net, x, cond, v)
        return -(h * derivatives).flatten(2).sum(2) / cond

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return input_gradient(functools.partial(self.energy, t=t), x)

    def jvp(
        self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """s and J v, shaped as `v` (m, B, C, H, W): J v is the gradient of v·∇ₓE."""
        with torch.enable_grad(), plain():
            x = x.detach().requires_grad_()
            slopes = self.slopes(x, t, v).sum(1)
            Jv = [torch.autograd.grad(slope, x, retain_graph=True)[0] for slope in slopes]
        return self(x, t), torch.stack(Jv)


@dataclasses.dataclass(frozen=True)
class GuidedScore:
    """The score of one class: s(x, t) + scale·∇ₓ log(softmax(logits(x, σ(t)))[y] + 1e-8).

    Chao et al., ICLR 2022, eq. 2: the posterior score from a prior and a likelihood score.

    Args:
        score: the prior's score s(x, t).
        classifier: function of x (B, C, H, W) and σ (B,) to logits (B, classes), in eval mode.
        labels: y (B,), or (1,) for the same class of every image.
    """

    score: Callable
    classifier: Callable
    sde: SDE
    labels: torch.Tensor
    scale: float = 1.0

    @property
    def unguided(self) -> Callable:
        """The prior's score."""
        return self.score

    def log_likelihood(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """ℓ (B,) at x (B, C, H, W)."""
        _, std = self.sde.marginal_prob(x, t)
        return class_log_likelihood(self.classifier(x, std), self.labels.expand(len(x)))

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        likelihood_score = input_gradient(functools.partial(self.log_likelihood, t=t), x)
        return self.score(x, t) + self.scale * likelihood_score


@dataclasses.dataclass(frozen=True)
class ClassifierFreeScore:
    """The score of one class, without a classifier: (1 − w)·s(x, t) + w·s(x, t, y).

    Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6, whose weight is w − 1: none
    at w = 0, the class's own score at w = 1. Both are computed in one pass of 2B rows.

    Args:
        score: s, of a network that takes labels.
        labels: y (B,), or (1,) for the same class of every image.
        scale: w.
    """

    score: Score | EnergyScore
    labels: torch.Tensor
    scale: float = 1.0

    @property
    def unguided(self) -> Score | EnergyScore:
        """The score without a label."""
        return self.score

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        labels = self.labels.expand(len(x))
        both = self.score.given(torch.cat([torch.full_like(labels, NO_LABEL), labels]))
        without, of_class = both(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return (1 - self.scale) * without + self.scale * of_class


@dataclasses.dataclass(frozen=True)
class InParts:
    """A score that is evaluated on at most `rows` images at a time, to bound its memory.

    The numbers are those of the whole batch, to rounding. Where gradients are enabled the graphs
    of all parts are kept: what differentiates a score takes parts itself, see `in_parts`.
    """

    score: Callable
    rows: int

    @property
    def unguided(self) -> "InParts":
        """That of the score within, if it is a guided one."""
        return InParts(self.score.unguided, self.rows)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return in_parts(self.score, self.rows, x, t)


def in_parts(function: Callable, rows: int | None, *batches: torch.Tensor) -> torch.Tensor:
    """``function(*batches)`` from parts of the batches, of at most `rows` rows and near equal.

    Args:
        function: of batches (b, …) to a tensor (b, …), each of whose rows is of the same row alone.
        rows: the largest part; None: the whole batch.
        batches: tensors (B, …).
    """
    count = 1 if rows is None else math.ceil(len(batches[0]) / rows)
    parts = zip(*(batch.tensor_split(count) for batch in batches))
    return torch.cat([function(*part) for part in parts])


def class_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """ℓ = log(softmax(logits) + 1e-8)[y] (B,) of logits (B, classes) and labels y (B,)."""
    probability = torch.softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
    return torch.log(probability + 1e-8)


def input_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """∇ₓ of the sum of `function(x)`, shaped as `x`; where gradients are enabled, with a graph.

    Unlike `func.grad` it lets batch norms count the batch, and has no forward-mode derivative.
    """
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad(), plain() if keep_graph else contextlib.nullcontext():
        if not x.requires_grad:
            x = x.detach().requires_grad_(True)
        return torch.autograd.grad(function(x).sum(), x, create_graph=keep_graph)[0]
