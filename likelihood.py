"""The likelihood and the asymmetry of a score model.

Log-likelihood by the instantaneous change of variables along the probability flow (Song et al.,
ICLR 2021, appendix D.2); asymmetry of the score's Jacobian as in Chao et al. (ICML 2023, section
5). Both estimate a trace with vectors v, E[vvᵀ] = I: random signs (Hutchinson), or √D times the D
unit vectors (`jacobian.unit_vectors`), which are exact.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch

from domains import Images, Points
from models import jacobian
from models.compute import exact_products
from models.scores import parts
from samplers.deterministic import no_callback
from samplers.ode import MAX_NFE, ODECallback, integrate
from sde_lib import SDE, ReverseSDE, ScoreFunction, perturb


class DensityField:
    """d(x, Δ)/dt with dx/dt the probability flow's drift and dΔ/dt the mean of vᵀ∇ₓ(drift)v.

    One evaluation of the score and one vector-Jacobian product for each of the vectors v
    (K, B, …) give both, for `rows` images at a time (None: all). The state is a matrix (B, D + 1).
    """

    def __init__(
        self, sde: SDE, score: ScoreFunction, v: torch.Tensor, rows: int | None = None
    ) -> None:
        self.score = score
        self.reverse = ReverseSDE(sde, self.score_with_graph, probability_flow=True)
        self.v, self.rows = v, rows

    def score_with_graph(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The score; a ValueError without a graph, since its divergence would be missing."""
        s = self.score(x, t)
        jacobian.require_score(s, x)
        jacobian.require_graph(s)
        return s

    def __call__(self, t: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        x, times = state[:, :-1].reshape(self.v.shape[1:]), t.repeat(len(state))
        derivatives = [
            self.derivatives(x[part], times[part], self.v[:, part])
            for part in parts(len(x), self.rows)
        ]
        return torch.cat(derivatives)

    def derivatives(self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """dx/dt and dΔ/dt at x (b, …) and t (b,), with v (K, b, …), concatenated to (b, D + 1)."""
        drift, vjp = jacobian.value_and_vjp(lambda x, t: self.reverse.sde(x, t)[0], x, t, v)
        divergence = jacobian.dot(vjp, v).mean(0)[:, None]
        return torch.cat([drift.flatten(1), divergence], dim=1)


@torch.no_grad()
def log_likelihood(
    score: ScoreFunction,
    sde: SDE,
    x: torch.Tensor,
    v: torch.Tensor,
    *,
    rtol: float,
    atol: float,
    max_nfe: int = MAX_NFE,
    rows: int | None = None,
    callback: ODECallback = no_callback,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Log-density of x under the probability flow.

    Args:
        score: function of x (B, …) and t (B,), shaped as x.
        x: (B, …), in the model's range.
        v: vectors (K, B, …) of the divergence's estimate, which is averaged over them.
        rtol, atol, max_nfe: tolerances of the RK45 solver, and its limit of evaluations.
        rows: as in `DensityField`. The solver's steps are those of the whole batch.

    Returns:
        The log-density (B,), the latents z at T, shaped as x, and the number of function
        evaluations.

    Raises:
        UserError: see `ode.integrate`.
    """
    start = torch.cat([x.flatten(1), torch.zeros(len(x), 1, device=x.device)], dim=1)
    end, nfe = integrate(
        DensityField(sde, score, v, rows),
        start,
        sde.likelihood_eps,
        sde.T,
        rtol=rtol,
        atol=atol,
        max_nfe=max_nfe,
        section="eval",
        callback=callback,
    )
    z, delta = end[:, :-1].reshape(x.shape), end[:, -1]
    return sde.prior_logp(z) + delta, z.float(), nfe


def nll(
    score: ScoreFunction,
    sde: SDE,
    domain: Images | Points,
    images: np.ndarray | torch.Tensor,
    *,
    vectors: int = 1,
    rtol: float = 1e-3,
    atol: float = 1e-5,
    rows: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """NLL (B,) of images: bits per dimension, or nats of points; on CUDA without TF32.

    Args:
        domain: scales the images for the score, see `domains.from_config`.
        images: uint8 (B, C, H, W), the layout of data sets (`domains.channels_first` converts
            stored samples), or points (B, D).
        vectors: the number of random sign vectors per image in the divergence's estimate.
        rtol, atol, rows: as in `log_likelihood`.
        generator: for the vectors and the dequantisation's noise; None: the device's default.

    Raises:
        UserError: the images have another type or shape than the domain's; see also
            `log_likelihood`.
        ValueError: the score's values are not shaped as x, or have no graph to it.
    """
    images = torch.asarray(images, copy=True)  # memory-mapped arrays are read-only
    domain.require_batch(images, domain.shape)
    rand = functools.partial(torch.rand, generator=generator, device=images.device)
    x = domain.to_density(images, rand)
    v = jacobian.as_vectors(vectors, x, generator)
    with exact_products():
        density, _, _ = log_likelihood(score, sde, x, v, rtol=rtol, atol=atol, rows=rows)
    return domain.negative_log_likelihood(density)


def asymmetry(
    score: ScoreFunction,
    sde: SDE,
    x: torch.Tensor,
    t: torch.Tensor,
    z: torch.Tensor,
    v: torch.Tensor,
    estimator: str | Callable = "paper",
    rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Asym and NAsym (B,) of the score at x_t = mean + std·z, see `jacobian.measure_asymmetry`.

    `v` are the K vectors (K, B, …). An image makes 1 + K rows; the network takes whole images of
    at most `rows` rows at a time (None: all).
    """
    images = None if rows is None else max(1, rows // (1 + len(v)))
    values = []
    for part in parts(len(x), images):
        x_t, _ = perturb(sde, x[part], t[part], z[part])
        both = jacobian.measure_asymmetry(score, x_t, t[part], v[:, part], estimator)
        values.append(torch.stack(both, dim=1))
    return torch.cat(values).unbind(1)


def noise_times(levels: int, sde: SDE, eps: float) -> torch.Tensor:
    """t = level·(T − eps) + eps for `levels` equally spaced levels in [0, 1)."""
    return torch.arange(levels) / levels * (sde.T - eps) + eps
