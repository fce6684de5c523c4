"""Products with the Jacobian J = ∂f/∂x of a function on images, and what they estimate.

For random v with E[vvᵀ] = I, both of
    paper: ‖Jᵀv‖² − (Jv)·(Jᵀv)        (Chao et al., ICML 2023, eq. 12)
    skew:  ½‖Jv − Jᵀv‖²
have the mean ½‖J − Jᵀ‖_F². The second is never negative and drops the first one's zero-mean cross
term −2vᵀSKv, with S and K the symmetric and antisymmetric parts of J.

Jv comes from a score's method `jvp`, Jᵀv from `vjp` here. Random vectors come stacked as
(K, B, C, H, W): K of them for each of B images.
"""

import contextlib

import torch


def rademacher(normal):
    """±1 from standard normal draws."""
    return torch.sign(normal)


def unit_vectors(x):
    """√D times each of the D unit vectors, for every row of `x` (B, …): (D, B, …).

    The mean over them of vᵀAv is the trace of A, that of a quadratic form of v its mean over random
    signs: exactly.
    """
    D = x[0].numel()
    units = D**0.5 * torch.eye(D, dtype=x.dtype, device=x.device)
    return units[:, None].expand(D, len(x), D).reshape(D, *x.shape)


def vjp(f, x, v):
    """Jᵀv (K, B, …) for K cotangents v of a function f at x (B, …)."""
    return value_and_vjp(f, x, v)[1]


def value_and_vjp(f, x, v):
    """f(x) (B, …) and Jᵀv (K, B, …) for K cotangents v of a function f at x (B, …)."""
    x = x.detach().requires_grad_()
    again = len(v) > 1
    # In turns: autograd's batched mode, no faster on a CPU, fails for energies in PyTorch 2.11.
    kept = torch.compiler.set_stance("force_eager") if again else contextlib.nullcontext()
    with torch.enable_grad(), kept:  # what is compiled cannot keep its graph
        out = f(x)
        products = [torch.autograd.grad(out, x, w, retain_graph=again)[0] for w in v]
    return out.detach(), torch.stack(products)


def dot(a, b):
    """Inner product per vector and image: (K, B, …), (K, B, …) → (K, B)."""
    return (a * b).flatten(2).sum(2)


def paper_asymmetry(p, q):
    """‖q‖² − p·q (K, B) with p = Jv and q = Jᵀv."""
    return dot(q, q) - dot(p, q)


def skew_asymmetry(p, q):
    """½‖p − q‖² (K, B) with p = Jv and q = Jᵀv."""
    return 0.5 * dot(p - q, p - q)


ESTIMATORS = {"paper": paper_asymmetry, "skew": skew_asymmetry}
"""Names of `loss.estimator`; a new one is a function of (p, q) with the mean above."""


def partial_derivatives(estimator, p, q):
    """∂e/∂p and ∂e/∂q of the sum of an estimator's values."""
    p, q = p.detach().requires_grad_(), q.detach().requires_grad_()
    return torch.autograd.grad(estimator(p, q).sum(), (p, q))
