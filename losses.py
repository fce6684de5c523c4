"""Training objectives and the optimiser step.

Denoising score matching (DSM; Vincent 2011, Song et al. 2021 eq. 7). With x_t = mean + std·z the
loss of an image is ½λ‖s(x_t, t) + z/std‖². The weighting λ(t) is an entry of `WEIGHTINGS`, the
distribution of t one of `TIMES`.

Quasi-conservative training (QC; Chao et al., ICML 2023) adds a regulariser of the asymmetry of the
score's Jacobian. Its gradient, and that of a constrained model's DSM, contain second derivatives.
Both are computed by reverse over forward: with r held constant, the gradient of a function of Jᵀr
with respect to the parameters is that of a Jacobian-vector product (`models.jacobian`). The tensor
that an objective returns has the loss's value and gradient.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn

from models import jacobian
from models.scores import EnergyScore, Score, class_log_likelihood
from sde_lib import SDE, ScoreFunction, expand, perturb
from utils import UserError, lookup

Draws = dict[str, Tensor]
"""Random numbers of a batch; the first axis of each tensor is the image."""

Batch = tuple[Tensor, Tensor, Draws]
"""Images x (B, C, H, W), labels (B,) and draws; a part of a batch has the same rows of each."""


class Objective(Protocol):
    """The loss that training minimises."""

    def draw(self, x: Tensor) -> Draws:
        """The random numbers of a batch x (B, C, H, W)."""

    def __call__(self, x: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
        """The loss, a mean over the images, to differentiate; and detached means to report."""


def rows_of(x: Tensor, labels: Tensor, draws: Draws, rows: slice) -> Batch:
    """A part of a batch, as an objective takes it."""
    return x[rows], labels[rows], {name: draw[rows] for name, draw in draws.items()}


def parts_of(x: Tensor, labels: Tensor, draws: Draws, size: int) -> Iterator[tuple[float, Batch]]:
    """Yield for each part of `size` images its fraction of the batch, and the part."""
    for start in range(0, len(x), size):
        part = rows_of(x, labels, draws, slice(start, start + size))
        yield len(part[0]) / len(x), part


def stratified(u: Tensor) -> Tensor:
    """Uniform draws (B,), one in each of B equal parts of [0, 1), in random order, from `u` (B,).

    The mean of a loss over them has a smaller variance than over `u`.
    """
    return (torch.randperm(len(u), device=u.device) + u) / len(u)


def half_square(residual: Tensor, reduce_mean: bool) -> Tensor:
    """½‖r‖² per image (B,); with `reduce_mean` the mean of r² over its dimensions instead."""
    squares = residual.square().flatten(1)
    return squares.mean(1) if reduce_mean else 0.5 * squares.sum(1)


# ---------------------------------------------------------------- weightings of DSM


def variance_weighting(s: Tensor, sde: SDE, t: Tensor, std: Tensor, z: Tensor) -> Tensor:
    """√λ·(s + z/std), shaped as `z`, for λ = std²: s·std + z."""
    return s * expand(std, z) + z


def likelihood_weighting(s: Tensor, sde: SDE, t: Tensor, std: Tensor, z: Tensor) -> Tensor:
    """λ = g(t)² (Song et al., "Maximum Likelihood Training of …", NeurIPS 2021)."""
    _, diffusion = sde.sde(z, t)
    return expand(diffusion, z) * (s + z / expand(std, z))


def edm_weighting(
    s: Tensor, sde: SDE, t: Tensor, std: Tensor, z: Tensor, sigma_data: float
) -> Tensor:
    """λ = std²(σ² + σ_d²)/σ_d², for denoisers (σ² + σ_d²)/(σσ_d)² (Karras et al. 2022, table 1).

    With the network of `models.edm` this is the difference between F and its target.
    """
    scale, _ = sde.marginal_prob(torch.ones_like(t), t)
    ratio = torch.sqrt(1 + (std / scale / sigma_data) ** 2)
    return expand(ratio, z) * variance_weighting(s, sde, t, std, z)


WEIGHTINGS = {
    "variance": lambda config: variance_weighting,
    "likelihood": lambda config: likelihood_weighting,
    "edm": lambda config: functools.partial(edm_weighting, sigma_data=config.model.sigma_data),
}
"""``config.training.weighting`` -> a function of the configuration that gives the weighting."""


# ---------------------------------------------------------------- distributions of t


def draw_times(u: Tensor, sde: SDE, eps: float) -> Tensor:
    """Uniform times t = u·(T − eps) + eps (B,) from uniform draws `u` (B,)."""
    return u * (sde.T - eps) + eps


def log_normal_times(
    u: Tensor, sde: SDE, eps: float, mean: float = -1.2, std: float = 1.2
) -> Tensor:
    """Times (B,) from uniform draws `u` (B,): ln σ ~ N(mean, std²), σ truncated to [σ(eps), σ(T)].

    σ is the noise level, see `SDE.noise_level` (Karras et al. 2022, table 1).
    """
    ends = (math.log(sde.noise_level(t)) for t in (eps, sde.T))
    low, high = (0.5 * math.erfc((mean - end) / (std * math.sqrt(2))) for end in ends)
    normal = torch.special.ndtri(low + u.double() * (high - low))
    return sde.time(torch.exp(mean + std * normal)).to(u.dtype)


TIMES = {
    "uniform": lambda config: draw_times,
    "log_normal": lambda config: functools.partial(
        log_normal_times, mean=config.training.log_sigma_mean, std=config.training.log_sigma_std
    ),
}
"""``config.training.times`` -> a function of the configuration that gives the distribution."""


# ---------------------------------------------------------------- objectives of scores


@dataclasses.dataclass(frozen=True)
class DSM:
    """The denoising score matching objective of a score `s(x, t)`.

    Args:
        score: function of x (B, C, H, W) and t (B,), shaped as x.
        eps: smallest training time.
        weighting: as `variance_weighting`.
        reduce_mean: as in `half_square`.
        times: as `draw_times`.
    """

    score: ScoreFunction
    sde: SDE
    eps: float
    weighting: Callable = variance_weighting
    reduce_mean: bool = False
    times: Callable = draw_times

    def draw(self, x: Tensor) -> Draws:
        """Uniform draws u (B,) and noise z, shaped as `x`."""
        u = torch.rand(len(x), device=x.device, dtype=x.dtype)
        return {"u": u, "z": torch.randn_like(x)}

    def perturb(self, x: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images x_t, shaped as `x`, times t (B,) and std (B,)."""
        t = self.times(u, self.sde, self.eps)
        x_t, std = perturb(self.sde, x, t, z)
        return x_t, t, std

    def weighted(self, s: Tensor, t: Tensor, std: Tensor, z: Tensor) -> Tensor:
        """DSM loss per image (B,) of the score's values s."""
        return half_square(self.weighting(s, self.sde, t, std, z), self.reduce_mean)

    def loss(self, x: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """DSM loss per image (B,)."""
        x_t, t, std = self.perturb(x, u, z)
        return self.weighted(self.score(x_t, t), t, std, z)

    def __call__(self, x: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
        loss = self.loss(x, **draws).mean()
        return loss, {"loss": loss.detach()}

    def evaluate(self, x: Tensor, labels: Tensor, draws: Draws) -> Draws:
        """The DSM loss of a batch, for validation."""
        return {"loss": self.loss(x, draws["u"], draws["z"]).mean()}


@dataclasses.dataclass(frozen=True)
class EnergyDSM(DSM):
    """DSM of a constrained model.

    The loss depends on the parameters through s = ∇ₓE. With d = ∂loss/∂s held constant its
    gradient is that of d·∇ₓE, a Jacobian-vector product of the energy.
    """

    score: EnergyScore

    def __call__(self, x: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
        x_t, t, std = self.perturb(x, **draws)
        with torch.no_grad(), jacobian.replay_dropout(x.device):
            score = self.score(x_t, t)
        score.requires_grad_()
        loss = self.weighted(score, t, std, draws["z"]).mean()
        (direction,) = torch.autograd.grad(loss, score)
        slope = self.score.energy_jvp(x_t, t, direction[None])
        loss = jacobian.with_gradient_of(slope.sum(), loss)
        return loss, {"loss": loss.detach()}


@dataclasses.dataclass(frozen=True)
class QuasiConservative(DSM):
    """DSM + balancing_fac·r with r = std²·e, e an estimator of ½‖J − Jᵀ‖_F², J = ∂s/∂x_t.

    e is averaged over K = `slices` random sign vectors per image, which share the image's t and z
    (Chao et al. 2023, eq. 12 and algorithm 1).

    Args:
        estimator: as in `jacobian.qc_regulariser`. The whole Jacobian, `jacobian.EXACT`, is for
            points, where D is small, and takes no vectors.
    """

    balancing_fac: float = 0.0
    slices: int = 1
    estimator: str | Callable = "paper"

    def draw(self, x: Tensor) -> Draws:
        """u, z, and standard normal v (B, K, C, H, W), whose signs are the random vectors."""
        if self.estimator == jacobian.EXACT:
            return super().draw(x)
        v = torch.randn(len(x), self.slices, *x.shape[1:], device=x.device, dtype=x.dtype)
        return dict(super().draw(x), v=v)

    def __call__(self, x: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
        x_t, t, std = self.perturb(x, draws["u"], draws["z"])
        signs = self.slices
        if "v" in draws:  # slice-major (K, B, C, H, W), see `jacobian`
            signs = jacobian.rademacher(draws["v"]).transpose(0, 1)
        s, e = jacobian.qc_regulariser(self.score, x_t, t, signs, self.estimator)
        dsm, regulariser = self.weighted(s, t, std, draws["z"]).mean(), (std**2 * e).mean()
        loss = dsm + self.balancing_fac * regulariser
        values = {"loss": loss, "dsm": dsm, "regulariser": regulariser}
        return loss, {name: value.detach() for name, value in values.items()}


def score_objective(config: ConfigDict, score: Score, sde: SDE) -> DSM:
    """The objective that a score model's configuration describes.

    Raises:
        UserError: an unknown weighting, distribution of t or estimator, two weightings, or a
            constrained model with the QC regulariser, which would be zero.
    """
    training = config.training
    weighting = training.weighting or "variance"
    if training.likelihood_weighting:
        if training.weighting not in (None, "likelihood"):
            raise UserError(
                f"config.training.weighting is {weighting!r} and config.training."
                "likelihood_weighting is True; give one of them."
            )
        weighting = "likelihood"
    weighting = lookup(WEIGHTINGS, weighting, "config.training.weighting")(config)
    times = lookup(TIMES, training.times, "config.training.times")(config)
    common = (score, sde, training.eps, weighting, training.reduce_mean, times)
    regularised = "loss" in config and config.loss.balancing_fac != 0
    if config.model.energy and regularised:
        raise UserError(
            "A constrained model (config.model.energy) has a symmetric Jacobian; set "
            "config.loss.balancing_fac to 0."
        )
    if config.model.energy:
        return EnergyDSM(*common)
    if not regularised:
        return DSM(*common)
    estimator, balancing_fac = config.loss.estimator, config.loss.balancing_fac
    lookup({**jacobian.ESTIMATORS, jacobian.EXACT: None}, estimator, "config.loss.estimator")
    return QuasiConservative(*common, balancing_fac, config.loss.slices, estimator)


# ---------------------------------------------------------------- noise-conditioned classifiers


def weighted_cross_entropy(logits: Tensor, labels: Tensor, std: Tensor, weighting: float) -> Tensor:
    """Batch mean of CE·σ^(−2·weighting), a scalar."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * std ** (-2 * weighting)).mean()


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of a noise-conditioned classifier, ``config.model.loss_type`` ce.

    Args:
        classifier: network of x (B, C, H, W) and σ (B,) to logits (B, classes).
        eps: smallest training time.
        weighting: as in `weighted_cross_entropy`.
    """

    classifier: nn.Module
    sde: SDE
    eps: float
    weighting: float = 0.0

    draw = DSM.draw

    def __call__(self, x: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
        x_t, std = perturb(self.sde, x, draw_times(draws["u"], self.sde, self.eps), draws["z"])
        loss = weighted_cross_entropy(self.classifier(x_t, std), labels, std, self.weighting)
        return loss, {"loss": loss.detach()}


def dlsm_loss(
    classifier: Callable,
    score: ScoreFunction,
    x: Tensor,
    t: Tensor,
    sigma: Tensor,
    z: Tensor,
    labels: Tensor,
    weighting: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """DLSM of a classifier f(x, σ), a scalar, and its logits (B, classes) for a cross-entropy.

    With ℓ = log(softmax(logits) + 1e-8)[y] at the noisy images and w = `weighting`, it is the mean
    over all elements of ½r², with r = σ^w ∇ₓℓ + σ^w s + σ^(w−1) z (Chao et al., ICLR 2022, eq. 9).

    There is one forward pass, so that batch norms update their statistics once. The gradient is a
    double backward through the classifier (`models.double_backward`); where gradients are disabled
    no graph is kept. The classifier must be twice differentiable in PyTorch.

    Args:
        classifier: function or module of x (B, C, H, W) and σ (B,) to logits (B, classes).
        score: the score s(x, t) of the images, without gradients.
        x: noisy images, mean + σ·z.
        t, sigma: their times and noise's standard deviations σ, (B,).
        z: the noise, shaped as `x`.
        labels: y (B,).

    Raises:
        ValueError: an argument or the score's output has another shape, or the labels are not
            integers.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        raise ValueError(f"labels is {labels!r}; expected an integer tensor (B,).")
    with torch.no_grad():
        s = score(x, t)
        shapes = {"z": (z, x.shape), "score(x, t)": (s, x.shape)}
        shapes |= {"t": (t, x.shape[:1]), "sigma": (sigma, x.shape[:1])}
        for name, (value, shape) in {**shapes, "labels": (labels, x.shape[:1])}.items():
            if value.shape != shape:
                raise ValueError(f"{name} has shape {(*value.shape,)}; expected {(*shape,)}.")
        prior = s + z / expand(sigma, z)
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad(), jacobian.higher_derivatives():
        x = x.detach().requires_grad_()
        logits = classifier(x, sigma)
        total = class_log_likelihood(logits, labels).sum()
        (likelihood_score,) = torch.autograd.grad(total, x, create_graph=keep_graph)
    residual = expand(sigma**weighting, z) * (likelihood_score + prior)
    return 0.5 * residual.square().mean(), logits if keep_graph else logits.detach()


@dataclasses.dataclass(frozen=True)
class DLSM:
    """Denoising likelihood score matching with cross-entropy: DLSM + coef·CE.

    Chao et al., ICLR 2022, eq. 9; the terms are `dlsm_loss` and `weighted_cross_entropy`.

    Args:
        classifier: network of x (B, C, H, W) and σ (B,) to logits (B, classes).
        score: the frozen score s(x, t).
        eps: smallest training time.
        weighting_dlsm, weighting_ce, coef: as above and in `weighted_cross_entropy`.
    """

    classifier: nn.Module
    score: ScoreFunction
    sde: SDE
    eps: float
    weighting_dlsm: float = 0.0
    weighting_ce: float = 0.0
    coef: float = 1.0

    draw = DSM.draw

    def terms(self, x: Tensor, labels: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """DLSM and CE, scalars, of images x (B, C, H, W) and labels (B,)."""
        t = draw_times(u, self.sde, self.eps)
        x_t, std = perturb(self.sde, x, t, z)
        loss, logits = dlsm_loss(
            self.classifier, self.score, x_t, t, std, z, labels, self.weighting_dlsm
        )
        return loss, weighted_cross_entropy(logits, labels, std, self.weighting_ce)

    def __call__(self, x: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
        dlsm, ce = self.terms(x, labels, **draws)
        loss = dlsm + self.coef * ce
        return loss, {"loss": loss.detach(), "dlsm": dlsm.detach(), "ce": ce.detach()}


def classifier_objective(
    config: ConfigDict, classifier: nn.Module, score: ScoreFunction, sde: SDE
) -> CrossEntropy | DLSM:
    """The objective of a noise-conditioned classifier that ``config.model.loss_type`` names.

    Raises:
        UserError: the name is unknown.
    """
    model, eps = config.model, sde.sampling_eps
    coefs = {"total": model.coef, "dlsm": 0.0, "ce": None}
    coef = lookup(coefs, model.loss_type, "config.model.loss_type")
    if coef is None:
        return CrossEntropy(classifier, sde, eps, model.weighting_ce)
    return DLSM(classifier, score, sde, eps, model.weighting_dlsm, model.weighting_ce, coef)


# ---------------------------------------------------------------- the optimiser


def make_optimizer(parameters: list[nn.Parameter], optim: ConfigDict) -> torch.optim.Optimizer:
    """The Adam optimiser of ``config.optim``, over all `parameters` in their order.

    Raises:
        UserError: ``config.optim.optimizer`` is another one.
    """
    if optim.optimizer != "Adam":
        raise UserError(f"config.optim.optimizer is {optim.optimizer!r}; expected Adam.")
    return torch.optim.Adam(
        parameters,
        lr=optim.lr,
        betas=(optim.beta1, 0.999),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def optimize(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], step: int, optim: ConfigDict
) -> Tensor:
    """One update from the gradients at `step` (counted from 0): warm-up, clipping, Adam.

    The rate is lr·min(step/warmup, 1); gradients are clipped to the global norm grad_clip.
    Returns their global norm before clipping, a scalar tensor on their device.
    """
    rate = optim.lr * (min(step / optim.warmup, 1.0) if optim.warmup > 0 else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip)
    optimizer.step()
    return norm
