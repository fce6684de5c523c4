"""The likelihood and the asymmetry of a score model.

Log-likelihood by the instantaneous change of variables along the probability flow (Song et al.,
ICLR 2021, appendix D.2); asymmetry of the score's Jacobian as in Chao et al. (ICML 2023, section
5). Both estimate a trace by vectors v with E[vvᵀ] = I: random signs, Hutchinson's, or all of
`jacobian.unit_vectors`, which give it exactly.
"""

import torch

from losses import perturb
from models import jacobian
from sampling import integrate
from sde_lib import ReverseSDE


class DensityField:
    """d(x, Δ)/dt with dx/dt the probability flow's drift and dΔ/dt the mean of vᵀ∇ₓ(drift)v.

    One evaluation of the score and one vector-Jacobian product for each of the vectors v
    (K, B, …) give both. The state is a matrix (B, D + 1), float64; `nfe` counts the evaluations.
    """

    def __init__(self, sde, score, v):
        self.reverse = ReverseSDE(sde, score, probability_flow=True)
        self.v = v
        self.nfe = 0

    def __call__(self, t, state):
        self.nfe += 1
        x = state[:, :-1].reshape(self.v.shape[1:]).float()
        drift, vjp = jacobian.value_and_vjp(
            lambda x: self.reverse.sde(x, t.float().expand(len(x)))[0], x, self.v
        )
        divergence = jacobian.dot(vjp, self.v).mean(0)[:, None]
        return torch.cat([drift.flatten(1), divergence], dim=1).double()


@torch.no_grad()
def log_likelihood(score, sde, x, v, *, rtol, atol):
    """Log-density of x under the probability flow.

    Args:
        score: function of x (B, …) and t (B,), shaped as x.
        x: (B, …), in the model's range.
        v: vectors (K, B, …) that the divergence is estimated by; their mean is taken.
        rtol, atol: tolerances of the RK45 solver.

    Returns:
        The log-density (B,), the latents z at T, shaped as x, and the number of function
        evaluations.
    """
    field = DensityField(sde, score, v)
    start = torch.cat([x.flatten(1), torch.zeros(len(x), 1, device=x.device)], dim=1).double()
    end = integrate(field, start, sde.likelihood_eps, sde.T, rtol, atol)
    z, delta = end[:, :-1].reshape(x.shape), end[:, -1]
    return sde.prior_logp(z) + delta, z.float(), field.nfe


def asymmetry(score, sde, x, t, z, v, estimator=jacobian.paper_asymmetry):
    """Asym and NAsym (B,) of the score at x_t = mean + std·z.

    Asym estimates ½‖J − Jᵀ‖_F² by `estimator`, the mean over the K vectors `v` (K, B, …);
    NAsym = ½ Asym / (‖Jᵀv‖² + 1e-8), with ‖Jᵀv‖² likewise averaged.
    """
    x_t, _ = perturb(sde, x, t, z)
    with torch.no_grad():
        _, p = score.jvp(x_t, t, v)
    q = jacobian.vjp(lambda x: score(x, t), x_t, v)
    asym = estimator(p, q).mean(0)
    return asym, 0.5 * asym / (jacobian.dot(q, q).mean(0) + 1e-8)


def noise_times(levels, sde, eps):
    """t = level·(T − eps) + eps for `levels` equally spaced levels in [0, 1)."""
    return torch.arange(levels) / levels * (sde.T - eps) + eps
