"""The likelihood and the asymmetry of a score model.

Log-likelihood by the instantaneous change of variables along the probability flow (Song et al.,
ICLR 2021, appendix D.2), with Hutchinson's estimate of the divergence; asymmetry of the score's
Jacobian as in Chao et al. (ICML 2023, section 5).
"""

import functools
import math

import torch

from models import jacobian
from models.scores import in_parts
from sampling import integrate
from sde_lib import ReverseSDE, perturb


class DensityField:
    """d(x, Δ)/dt with dx/dt the probability flow's drift and dΔ/dt = εᵀ∇ₓ(drift)ε.

    One evaluation of the score and one vector-Jacobian product give both, for `rows` images at a
    time (None: all). The state is a matrix (B, D + 1), float64; `nfe` counts the evaluations.
    """

    def __init__(self, sde, score, epsilon, rows=None):
        self.reverse = ReverseSDE(sde, score, probability_flow=True)
        self.epsilon = epsilon
        self.rows = rows
        self.nfe = 0

    def __call__(self, t, state):
        self.nfe += 1
        x = state[:, :-1].reshape(self.epsilon.shape).float()
        times = t.float().expand(len(x))
        return in_parts(self.derivatives, self.rows, x, times, self.epsilon).double()

    def derivatives(self, x, t, epsilon):
        """dx/dt and dΔ/dt of images x (b, C, H, W) at times t (b,), side by side: (b, D + 1)."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            drift, _ = self.reverse.sde(x, t)
            (vjp,) = torch.autograd.grad(drift, x, epsilon)
        divergence = (vjp * epsilon).flatten(1).sum(1, keepdim=True)
        return torch.cat([drift.detach().flatten(1), divergence], dim=1)


@torch.no_grad()
def bits_per_dim(score, sde, x, epsilon, *, rtol, atol, offset, rows=None):
    """Negative log2-likelihood per dimension of 8-bit images under the probability flow.

    Args:
        score: function of x (B, C, H, W) and t (B,), shaped as x.
        x: dequantised images in the model's range.
        epsilon: random signs, shaped as x.
        rtol, atol: tolerances of the RK45 solver.
        offset: bits for the change from 0…255 to the model's range, 8 for [0, 1], 7 for [−1, 1].
        rows: images that the network takes at a time; None: all. The solver's steps are those of
            the whole batch.

    Returns:
        bits/dim (B,), the latents z at T, shaped as x, and the number of function evaluations.
    """
    field = DensityField(sde, score, epsilon, rows)
    start = torch.cat([x.flatten(1), torch.zeros(len(x), 1, device=x.device)], dim=1).double()
    end = integrate(field, start, sde.likelihood_eps, sde.T, rtol, atol)
    z, delta = end[:, :-1].reshape(x.shape), end[:, -1]
    bits = -(sde.prior_logp(z) + delta) / (x[0].numel() * math.log(2))
    return bits + offset, z.float(), field.nfe


def dequantise(x, noise):
    """(u + 255x)/256 for 8-bit images x in [0, 1] and uniform noise u."""
    return (noise + 255 * x) / 256


def asymmetry(score, sde, x, t, z, v, estimator=jacobian.paper_asymmetry, rows=None):
    """Asym and NAsym (B,) of the score at x_t = mean + std·z.

    Asym estimates ½‖J − Jᵀ‖_F² by `estimator`, the mean over the K sign vectors `v`
    (K, B, C, H, W); NAsym = ½ Asym / (‖Jᵀv‖² + 1e-8), with ‖Jᵀv‖² likewise averaged. An image
    makes 1 + K rows; the network takes `rows` of them at a time (None: all), but whole images.
    """
    measure = functools.partial(_asymmetry, score, sde, estimator)
    images = None if rows is None else max(1, rows // (1 + len(v)))
    return in_parts(measure, images, x, t, z, v.transpose(0, 1)).unbind(1)


def _asymmetry(score, sde, estimator, x, t, z, v):
    """Asym and NAsym side by side (b, 2), of v (b, K, C, H, W)."""
    x_t, _ = perturb(sde, x, t, z)
    v = v.transpose(0, 1)
    with torch.no_grad():
        _, p = score.jvp(x_t, t, v)
    q = jacobian.vjp(score, x_t, t, v)
    asym = estimator(p, q).mean(0)
    return torch.stack([asym, 0.5 * asym / (jacobian.dot(q, q).mean(0) + 1e-8)], dim=1)


def noise_times(levels, sde, eps):
    """t = level·(T − eps) + eps for `levels` equally spaced levels in [0, 1)."""
    return torch.arange(levels) / levels * (sde.T - eps) + eps
