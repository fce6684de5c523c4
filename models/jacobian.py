"""Products with the Jacobian J = ∂f/∂x of a function on images, and what they estimate.

For random v with E[vvᵀ] = I, both of
    paper: ‖Jᵀv‖² − (Jv)·(Jᵀv)        (Chao et al., ICML 2023, eq. 12)
    skew:  ½‖Jv − Jᵀv‖²
have the mean ½‖J − Jᵀ‖_F². The second is never negative and drops the first one's zero-mean cross
term −2vᵀSKv, with S and K the symmetric and antisymmetric parts of J.

Jv comes from a score's method `jvp`, Jᵀv from `vjp` here. Vectors are slice-major: (K, B, C, H, W)
for K vectors for each of B images.
"""

from collections.abc import Callable

import torch


def rademacher(normal: torch.Tensor) -> torch.Tensor:
    """±1 from standard normal draws."""
    return torch.sign(normal)


def unit_vectors(x: torch.Tensor) -> torch.Tensor:
    """Each of the D unit vectors, for every row of `x` (B, …): (D, B, …)."""
    D = x[0].numel()
    units = torch.eye(D, dtype=x.dtype, device=x.device)
    return units[:, None].expand(D, len(x), D).reshape(D, *x.shape)


def matrix(value_and_jvp: Callable, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x) (B, …) and J (B, D, D) at x (B, …) of D elements each.

    ``value_and_jvp(v)`` gives f(x) and J v; it is called once, with all D unit vectors (D, B, …).
    """
    value, columns = value_and_jvp(unit_vectors(x))
    return value, columns.flatten(2).permute(1, 2, 0)


def asymmetry(J: torch.Tensor) -> torch.Tensor:
    """½‖J − Jᵀ‖_F² = tr JJᵀ − tr JJ (B,) of J (B, D, D)."""
    return 0.5 * (J - J.mT).square().sum((1, 2))


def vjp(score: Callable, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Jᵀv (K, B, …) for K cotangents v of a `score(x, t)` at x (B, …) and t (B,)."""
    return value_and_vjp(score, x, t, v)[1]


def value_and_vjp(
    function: Callable, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``function(x, t)`` (B, …) and Jᵀv (K, B, …) for K cotangents v at x (B, …) and t (B,).

    One forward pass and K backward passes.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        out = function(x, t)
        *others, last = v
        q = [torch.autograd.grad(out, x, w, retain_graph=True)[0] for w in others]
        q += torch.autograd.grad(out, x, last)  # frees the graph as it goes
    return out.detach(), torch.stack(q)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product per vector and image: (K, B, …), (K, B, …) → (K, B)."""
    return (a * b).flatten(2).sum(2)


def paper_asymmetry(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """‖q‖² − p·q (K, B) with p = Jv and q = Jᵀv."""
    return dot(q, q) - dot(p, q)


def skew_asymmetry(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """½‖p − q‖² (K, B) with p = Jv and q = Jᵀv."""
    return 0.5 * dot(p - q, p - q)


ESTIMATORS = {"paper": paper_asymmetry, "skew": skew_asymmetry}
"""Names of `loss.estimator`; a new one is a function of (p, q) with the mean above."""


def partial_derivatives(
    estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    p: torch.Tensor,
    q: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """∂e/∂p and ∂e/∂q of the sum of an estimator's values."""
    p, q = p.detach().requires_grad_(), q.detach().requires_grad_()
    return torch.autograd.grad(estimator(p, q).sum(), (p, q))
