"""Scores: functions `score(x, t)` from (B, C, H, W) and (B,) to (B, C, H, W).

Losses, samplers and likelihoods take such a function and do not depend on networks. The vectors v
of Jacobian-vector products J v, J = ∂s/∂x, are slice-major: (K, B, C, H, W).
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import torch

from models.jacobian import eager_higher_derivatives
from models.jvp import network_value_and_jvp
from models.labels import NO_LABEL
from sde_lib import SDE, ScoreFunction, expand
from utils import shares


@dataclasses.dataclass(frozen=True)
class Score:
    """∇ₓ log p_t(x) as a network models it: net(x, σ(t)) for VE, −net(x, 999t)/std(t) for VP.

    Args:
        net: network of x (B, C, H, W), a condition (B,) and, if there are any, `labels`.
        continuous: whether it was trained at continuous times.
        labels: y (B,), or (1,) for the same class of every image; or None.
    """

    net: Callable
    sde: SDE
    continuous: bool = True
    labels: torch.Tensor | None = None

    def conditioned_on(self, labels: torch.Tensor) -> "Score":
        """The score s(x, t, y) of labels y (B,) or (1,), of a network that takes labels."""
        return dataclasses.replace(self, labels=labels)

    def label_options(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The keyword arguments of `net`: the images' labels, if there are any."""
        return {} if self.labels is None else {"labels": self.labels.expand(len(x))}

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, scale = self.sde.conditioning(t, self.continuous)
        return expand(scale, x) * self.net(x, cond, **self.label_options(x))

    def value_and_jvp(
        self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """s (B, C, H, W) and J v, shaped as `v` (K, B, C, H, W), in one pass.

        Both can be differentiated with respect to parameters and x.
        """
        cond, scale = self.sde.conditioning(t, self.continuous)
        out, Jv = network_value_and_jvp(self.net, x, cond, v, **self.label_options(x))
        return expand(scale, x) * out, expand(scale, x) * Jv


@dataclasses.dataclass(frozen=True)
class EnergyScore(Score):
    """The score ∇ₓE of a constrained model, E = −½‖h‖²/σ with h = net(x, σ) (continuous VE only).

    Its Jacobian is symmetric by construction.
    """

    def energy(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """E (B,) at x (B, C, H, W)."""
        cond, _ = self.sde.conditioning(t, continuous=True)
        h = self.net(x, cond, **self.label_options(x))
        return -0.5 * h.square().flatten(1).sum(1) / cond

    def energy_jvp(self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """v·∇ₓE (K, B), the derivatives of the energy along v (K, B, C, H, W)."""
        cond, _ = self.sde.conditioning(t, continuous=True)
        h, Jv = network_value_and_jvp(self.net, x, cond, v, **self.label_options(x))
        return -(h * Jv).flatten(2).sum(2) / cond

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return input_gradient(functools.partial(self.energy, t=t), x)

    def jvp(self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """J v, shaped as `v` (K, B, C, H, W): the gradient of v·∇ₓE."""
        with torch.enable_grad(), eager_higher_derivatives():
            x = x.detach().requires_grad_()
            slopes = self.energy_jvp(x, t, v).sum(1)
            Jv = [torch.autograd.grad(slope, x, retain_graph=True)[0] for slope in slopes]
        return torch.stack(Jv)

    def value_and_jvp(
        self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """s and J v, two separate computations."""
        return self(x, t), self.jvp(x, t, v)


@dataclasses.dataclass(frozen=True)
class GuidedScore:
    """The score of one class: s(x, t) + scale·∇ₓ log(softmax(logits(x, σ(t)))[y] + 1e-8).

    Chao et al., ICLR 2022, eq. 2: the posterior score from a prior and a likelihood score.

    Args:
        unguided: the prior's score s(x, t).
        classifier: function of x (B, C, H, W) and σ (B,) to logits (B, classes), in eval mode.
        labels: y (B,), or (1,) for the same class of every image.
    """

    unguided: ScoreFunction
    classifier: Callable
    sde: SDE
    labels: torch.Tensor
    scale: float = 1.0

    def log_likelihood(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """ℓ (B,) at x (B, C, H, W)."""
        _, std = self.sde.marginal_prob(x, t)
        return class_log_likelihood(self.classifier(x, std), self.labels.expand(len(x)))

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        likelihood_score = input_gradient(functools.partial(self.log_likelihood, t=t), x)
        return self.unguided(x, t) + self.scale * likelihood_score


@dataclasses.dataclass(frozen=True)
class ClassifierFreeScore:
    """The score of one class, without a classifier: (1 − w)·s(x, t) + w·s(x, t, y).

    Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6, whose weight is w − 1: no
    guidance at w = 0, the score of the class at w = 1. One pass of 2B rows computes both.

    Args:
        unguided: the score s(x, t) of a network that takes labels, without labels.
        labels: y (B,), or (1,) for the same class of every image.
        scale: w.
    """

    unguided: Score
    labels: torch.Tensor
    scale: float = 1.0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        labels = self.labels.expand(len(x))
        both = self.unguided.conditioned_on(torch.cat([torch.full_like(labels, NO_LABEL), labels]))
        plain, conditional = both(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return (1 - self.scale) * plain + self.scale * conditional


@dataclasses.dataclass(frozen=True)
class InParts:
    """A score that is evaluated on at most `rows` images at a time, to bound its memory.

    The result equals that of the whole batch, to rounding. Where gradients are enabled, the graphs
    of all parts are kept.
    """

    score: ScoreFunction
    rows: int

    @property
    def unguided(self) -> "InParts":
        """`unguided` of the wrapped score, which must be a guided one."""
        return InParts(self.score.unguided, self.rows)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.score(x[part], t[part]) for part in parts(len(x), self.rows)])


def parts(count: int, rows: int | None) -> list[slice]:
    """Slices of a batch of `count` rows, near equal, of at most `rows` rows; None: one part."""
    sizes = shares(count, 1 if rows is None else math.ceil(count / rows))
    return [slice(*ends) for ends in itertools.pairwise(itertools.accumulate(sizes, initial=0))]


def class_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """ℓ = log(softmax(logits) + 1e-8)[y] (B,) of logits (B, classes) and labels y (B,)."""
    probability = torch.softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
    return torch.log(probability + 1e-8)


def input_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """∇ₓ of the sum of `function(x)`, shaped as `x`; where gradients are enabled, with a graph."""
    keep_graph = torch.is_grad_enabled()
    with (
        torch.enable_grad(),
        eager_higher_derivatives() if keep_graph else contextlib.nullcontext(),
    ):
        if not x.requires_grad:
            x = x.detach().requires_grad_(True)
        return torch.autograd.grad(function(x).sum(), x, create_graph=keep_graph)[0]
