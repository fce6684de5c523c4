"""The published objectives with every derivative taken by ``create_graph``.

The tests' oracle of the gradients in `losses`, and the baseline that `studies.speed` times.
"""

import torch
import torch.nn.functional as F

import losses
import sde_lib
from models import jacobian


def quasi_conservative(objective, x, u, z, v):
    """A `losses.QuasiConservative`'s DSM + balancing_fac·r, a scalar."""
    t = losses.draw_times(u, objective.sde, objective.eps)
    x_t, std = sde_lib.perturb(objective.sde, x, t, z)
    x_t.requires_grad_()
    with jacobian.eager_higher_derivatives():
        s = objective.score(x_t, t)
    dsm = objective.weighted(s, t, std, z)
    q, p = [], []
    for sign in v.sign().transpose(0, 1):
        q.append(torch.autograd.grad(s, x_t, sign, create_graph=True)[0])
        dummy = torch.zeros_like(s, requires_grad=True)
        (linear,) = torch.autograd.grad(s, x_t, dummy, create_graph=True)
        p.append(torch.autograd.grad(linear, dummy, sign, create_graph=True)[0])
    estimator = jacobian.ESTIMATORS[objective.estimator]
    r = std**2 * estimator(torch.stack(p), torch.stack(q)).mean(0)
    return dsm.mean() + objective.balancing_fac * r.mean()


def dlsm(objective, x, labels, u, z):
    """A `losses.DLSM`'s DLSM and CE, scalars, as their formulas say."""
    t = losses.draw_times(u, objective.sde, objective.eps)
    x_t, std = sde_lib.perturb(objective.sde, x, t, z)
    x_t.requires_grad_()
    logits = objective.classifier(x_t, std)
    log_p = torch.log(torch.softmax(logits, 1) + 1e-8)[torch.arange(len(x)), labels]
    (gradient,) = torch.autograd.grad(log_p.sum(), x_t, create_graph=True)
    sigma, w = std[:, None, None, None], objective.weighting_dlsm
    with torch.no_grad():
        score = objective.score(x_t, t)
    residual = sigma**w * (gradient + score) + sigma ** (w - 1) * z
    ce = F.cross_entropy(logits, labels, reduction="none") * std ** (-2 * objective.weighting_ce)
    return 0.5 * residual.square().mean(), ce.mean()
