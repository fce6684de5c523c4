"""The asymmetry of the Jacobian J = ∂s/∂x of any score s(x, t), and the QC regulariser.

This file imports only PyTorch and can be copied into another project unchanged. A score is any
function or module of x (B, …) and t (B,) that returns a tensor shaped as x.

For random v with E[vvᵀ] = I, both of
    paper: ‖Jᵀv‖² − (Jv)·(Jᵀv)        (Chao et al., ICML 2023, eq. 12)
    skew:  ½‖Jv − Jᵀv‖²
have the mean ½‖J − Jᵀ‖_F². The second is never negative and drops the first one's zero-mean cross
term −2vᵀSKv, with S and K the symmetric and antisymmetric parts of J.

The gradient is computed by reverse over forward. With p = Jv, q = Jᵀv and an estimator e(p, q), it
is that of (∂e/∂p)·(J v) + v·(J ∂e/∂q), the partial derivatives held constant: two Jacobian-vector
products in the pass that computes the score's values, and one backward pass. The products are
computed by the score's methods `value_and_jvp` and `jvp` (x, t, v) if it has them, else by
`torch.func.jvp`.

Vectors are slice-major: (K, B, C, H, W) for K vectors for each of B images.
"""

import contextlib
import functools
import importlib
import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

EXACT = "exact"
"""The name for the whole Jacobian instead of an estimator; for x of few dimensions."""

# ---------------------------------------------------------------- asymmetry of a score


def qc_regulariser(
    score: Callable,
    x: torch.Tensor,
    t: torch.Tensor,
    vectors: int | torch.Tensor = 1,
    estimator: str | Callable = "paper",
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The score s and the regulariser e of each image, whose gradients share one pass.

    A loss is for example ``dsm(s) + factor * (std**2 * e).mean()``. Dropout has the same masks in
    all passes.

    Args:
        score: function or module of x (B, …) and t (B,).
        vectors: v (K, B, …), or the number K of vectors of random signs.
        estimator: a name in `ESTIMATORS`, a function of (p, q) like those there, or `EXACT`, which
            takes no vectors.
        generator: for the random signs; None: the default one.

    Returns:
        s (B, …), and e (B,), the mean over an image's vectors. Both can be differentiated, once,
        with respect to parameters and x.

    Raises:
        ValueError: `x`, `t`, `vectors` or `estimator` is not as above; the score's values are not
            shaped as x or have no graph to it; or a batch norm uses batch statistics.
    """
    require_inputs(x, t)
    if estimator == EXACT:
        value, J = matrix(functools.partial(score_value_and_jvp, score, x, t), x)
        return value, asymmetry(J)
    v, estimator = as_vectors(vectors, x, generator), as_function(estimator)
    with replay_dropout(x.device), torch.no_grad():
        p = score_jvp(score, x, t, v)  # first, since it rejects batch statistics
    with replay_dropout(x.device):
        _, q = value_and_vjp(score, x, t, v)
    grad_p, grad_q = partial_derivatives(estimator, p, q)
    value, Jv = score_value_and_jvp(score, x, t, torch.cat([v, grad_q]))
    slope = dot(torch.cat([grad_p, v]), Jv).unflatten(0, (2, -1)).sum(0).mean(0)
    return value, with_gradient_of(slope, estimator(p, q).mean(0))


@torch.no_grad()
def measure_asymmetry(
    score: Callable,
    x: torch.Tensor,
    t: torch.Tensor,
    vectors: int | torch.Tensor = 1,
    estimator: str | Callable = "paper",
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Asym and NAsym (B,) of a score at x (B, …) and t (B,); arguments as in `qc_regulariser`.

    Asym is ½‖J − Jᵀ‖_F² or its estimate; NAsym = ½ Asym / (‖Jᵀv‖² + 1e-8), with ‖Jᵀv‖² averaged
    over the vectors, or ‖J‖_F² (Chao et al., ICML 2023, section 5). The estimate of Asym is
    unbiased; the estimate of NAsym, a ratio, has a bias of order 1/K for K vectors, which depends
    on the estimator. On CUDA measure without TF32 (``torch.backends.cudnn.allow_tf32``), which
    rounds p and q. Raises as `qc_regulariser`.
    """
    require_inputs(x, t)
    if estimator == EXACT:
        _, J = matrix(functools.partial(score_value_and_jvp, score, x, t), x)
        asym, square = asymmetry(J), J.square().sum((1, 2))
    else:
        v = as_vectors(vectors, x, generator)
        with replay_dropout(x.device):
            p = score_jvp(score, x, t, v)
        _, q = value_and_vjp(score, x, t, v)
        asym, square = as_function(estimator)(p, q).mean(0), dot(q, q).mean(0)
    return asym, 0.5 * asym / (square + 1e-8)


def require_inputs(x: torch.Tensor, t: torch.Tensor) -> None:
    """Raise a ValueError unless `x` (B, …) holds floats and `t` is shaped (B,)."""
    if not x.is_floating_point():
        raise ValueError(f"x has the type {x.dtype}; expected floats.")
    if not isinstance(t, torch.Tensor) or t.shape != x.shape[:1]:
        given = f"shape {(*t.shape,)}" if isinstance(t, torch.Tensor) else f"the value {t!r}"
        raise ValueError(f"t has {given}; expected a tensor of shape ({len(x)},), one of each x.")


def require_score(s: torch.Tensor, x: torch.Tensor) -> None:
    """Raise a ValueError unless `s`, a score's values at `x`, is a tensor shaped as x."""
    shape = s.shape if isinstance(s, torch.Tensor) else type(s).__name__
    if shape != x.shape:
        raise ValueError(f"The score returns {shape}; expected a tensor shaped as x, {x.shape}.")


def require_graph(s: torch.Tensor) -> None:
    """Raise a ValueError if `s`, a score's values where gradients are enabled, has no graph."""
    if not s.requires_grad:
        raise ValueError(
            "The score's values have no graph to x: it detaches them, or runs under torch.no_grad "
            "or torch.inference_mode. Products with its Jacobian need the graph."
        )


def with_gradient_of(surrogate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A tensor with the values of `value` and the gradient of `surrogate`, of the same shape."""
    return value.detach() + (surrogate - surrogate.detach())


def replay_dropout(device: torch.device) -> contextlib.AbstractContextManager:
    """A context that restores the generators on exit: the next pass draws the same masks."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


# ---------------------------------------------------------------- vectors


def rademacher(normal: torch.Tensor) -> torch.Tensor:
    """±1 from standard normal draws."""
    return torch.sign(normal)


def as_vectors(
    vectors: int | torch.Tensor, x: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Vectors (K, B, …) as they are, or K vectors of random signs for each row of `x` (B, …).

    Raises:
        ValueError: K is not a positive integer, or the vectors have another shape.
    """
    if isinstance(vectors, torch.Tensor):
        if vectors.ndim != x.ndim + 1 or vectors.shape[1:] != x.shape or not len(vectors):
            raise ValueError(
                f"vectors has shape {(*vectors.shape,)}; expected (K, *x.shape), (K, "
                f"{', '.join(map(str, x.shape))}), with K of at least 1."
            )
        return vectors
    if isinstance(vectors, bool) or not isinstance(vectors, numbers.Integral) or vectors < 1:
        raise ValueError(f"vectors is {vectors!r}; expected a tensor or a number of at least 1.")
    shape = (vectors, *x.shape)
    return rademacher(torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype))


def unit_vectors(x: torch.Tensor) -> torch.Tensor:
    """Each of the D unit vectors, for every row of `x` (B, …): (D, B, …)."""
    D = x[0].numel()
    units = torch.eye(D, dtype=x.dtype, device=x.device)
    return units[:, None].expand(D, len(x), D).reshape(D, *x.shape)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product per vector and image: (K, B, …), (K, B, …) → (K, B), in float32 at least."""
    kind = torch.promote_types(a.dtype, torch.float32)  # float16 overflows above 65,504
    return (a.to(kind) * b.to(kind)).flatten(2).sum(2)


# ---------------------------------------------------------------- estimators


def paper_asymmetry(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """‖q‖² − p·q (K, B) with p = Jv and q = Jᵀv."""
    return dot(q, q) - dot(p, q)


def skew_asymmetry(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """½‖p − q‖² (K, B) with p = Jv and q = Jᵀv."""
    return 0.5 * dot(p - q, p - q)


ESTIMATORS = {"paper": paper_asymmetry, "skew": skew_asymmetry}
"""Names of `loss.estimator`; a new one is a function of (p, q) with the mean above."""


def as_function(estimator: str | Callable) -> Callable:
    """The function of (p, q) for `estimator`, which is its name or the function itself.

    Raises:
        ValueError: the name is not in `ESTIMATORS`.
    """
    if not isinstance(estimator, str):
        return estimator
    if estimator not in ESTIMATORS:
        names = ", ".join([*ESTIMATORS, EXACT])
        raise ValueError(f"estimator is {estimator!r}; expected a function or one of: {names}.")
    return ESTIMATORS[estimator]


def partial_derivatives(
    estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    p: torch.Tensor,
    q: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """∂e/∂p and ∂e/∂q of the sum of an estimator's values."""
    p, q = p.detach().requires_grad_(), q.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(estimator(p, q).sum(), (p, q), materialize_grads=True)


def asymmetry(J: torch.Tensor) -> torch.Tensor:
    """½‖J − Jᵀ‖_F² = tr JJᵀ − tr JJ (B,) of J (B, D, D)."""
    return 0.5 * (J - J.mT).square().sum((1, 2))


# ---------------------------------------------------------------- products


def matrix(value_and_jvp: Callable, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x) (B, …) and J (B, D, D) at x (B, …) of D elements each.

    ``value_and_jvp(v)`` gives f(x) and J v; it is called once, with all D unit vectors (D, B, …).
    """
    value, columns = value_and_jvp(unit_vectors(x))
    return value, columns.flatten(2).permute(1, 2, 0)


def value_and_vjp(
    function: Callable, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``function(x, t)`` (B, …) and Jᵀv (K, B, …) for K cotangents v at x (B, …) and t (B,).

    One forward pass and K backward passes.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        out = function(x, t)
        require_score(out, x)
        require_graph(out)
        *others, last = v
        q = [torch.autograd.grad(out, x, w, retain_graph=True)[0] for w in others]
        q += torch.autograd.grad(out, x, last)  # frees the graph as it goes
    return out.detach(), torch.stack(q)


def score_jvp(score: Callable, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """J v (K, B, …) for K vectors v, by the score's own method `jvp` where it has one."""
    if hasattr(score, "jvp"):
        return score.jvp(x, t, v)
    return score_value_and_jvp(score, x, t, v)[1]


def score_value_and_jvp(
    score: Callable, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """s (B, …) and J v (K, B, …) for K vectors v, by the score's own method where it has one."""
    if hasattr(score, "value_and_jvp"):
        return score.value_and_jvp(x, t, v)
    value, Jv = value_and_jvp(lambda x: score(x, t), x, v)
    require_score(value, x)
    return value, Jv


def value_and_jvp(
    f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x) (B, …) and J v (m, B, …) for m vectors v, shaped (m, *x.shape), in one pass.

    Both can be differentiated. Custom autograd functions within `f` need a `jvp` and a `vmap` rule.

    Raises:
        ValueError: a batch norm in `f` uses batch statistics, or counts batches.
    """
    _load()
    products = torch.func.vmap(
        lambda tangent: torch.func.jvp(f, (x,), (tangent,)), out_dims=(None, 0), randomness="same"
    )
    with eager_higher_derivatives(), Replaced({F.batch_norm: batch_norm}):
        try:
            return products(v)
        except RuntimeError as error:
            if "mutate a captured Tensor" not in str(error):
                raise
            raise ValueError(
                "The score changes one of its own tensors in place, as a batch norm in training "
                "does; products with its Jacobian need a network that does not."
            ) from error


@functools.cache
def _load():
    """Import what `torch.func.jvp` needs, without PyTorch's warning about `torch.jit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


# ---------------------------------------------------------------- higher derivatives


@contextlib.contextmanager
def higher_derivatives() -> Iterator[None]:
    """Within the context attention and the functions of `REPLACED` have higher derivatives."""
    with sdpa_kernel(SDPBackend.MATH), Replaced(REPLACED):
        yield


@contextlib.contextmanager
def eager_higher_derivatives() -> Iterator[None]:
    """`higher_derivatives` without compiled code, which cannot be differentiated twice."""
    with torch.compiler.set_stance("force_eager"), higher_derivatives():
        yield


class Replaced(TorchFunctionMode):
    """A context that replaces functions: the keys of the dict `functions` by its values."""

    def __init__(self, functions: dict[Callable, Callable]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(self, function, types, arguments=(), options=None):
        function = self.functions.get(function, function)
        return function(*arguments, **(options or {}))


def batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.batch_norm` with running statistics.

    Raises:
        ValueError: batch statistics are requested.
    """
    if training or running_mean is None:
        raise ValueError(
            "In training, a batch norm makes the images of a batch depend on each other; products "
            "with the Jacobian of an image's score need a network without batch norm."
        )
    return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)


def group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.group_norm`; PyTorch 2.11 computes its tangents for contiguous maps only."""
    out = F.group_norm(input.contiguous(), num_groups, weight, bias, eps)
    last = input.ndim == 4 and input.permute(0, 2, 3, 1).is_contiguous()
    if input.is_cuda or input.is_contiguous() or not last:
        return out
    # As PyTorch's, channels-last on a CPU but not on CUDA: the order of dropout's draws follows it.
    return out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """`F.layer_norm`, as a group norm of one group.

    In PyTorch 2.14 the gradient of a layer norm's tangent and its third derivative are wrong.
    """
    features = tuple(normalized_shape)
    rows = input.reshape(-1, math.prod(features))
    weight, bias = (p if p is None else p.flatten() for p in (weight, bias))
    # The result is contiguous as PyTorch's is; the order of dropout's draws depends on it.
    return F.group_norm(rows, 1, weight, bias, eps).view(input.shape)


def instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.instance_norm` of maps (B, C, …), as a group norm of C groups; as `layer_norm`.

    With running statistics PyTorch's own is called.
    """
    if running_mean is not None or not use_input_stats:
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    return group_norm(input, input.shape[1], weight, bias, eps)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear` on flattened rows; otherwise PyTorch may copy the weight for each image."""
    if input.ndim < 3:
        return linear_in_input(F.linear, input, weight, bias)
    rows = linear_in_input(F.linear, input.flatten(0, -2), weight, bias)
    return rows.unflatten(0, input.shape[:-1])


def linear_in_input(
    function: Callable,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *arguments: Any,
    **options: Any,
) -> torch.Tensor:
    """Apply a function such as `F.conv2d` to the values and, without the bias, to the tangents.

    PyTorch would also compute a third product, with a zero tangent of the weight.
    """
    values, tangents = unpack_dual(input)
    if tangents is None or unpack_dual(weight).tangent is not None:
        return function(input, weight, bias, *arguments, **options)
    out = function(values, weight, bias, *arguments, **options)
    return make_dual(out, function(tangents, weight, None, *arguments, **options))


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """`F.dropout` on a CPU with the mask of an ordinary pass, drawn in the map's memory order."""
    if input.is_cuda or not training or p in (0, 1):
        return F.dropout(input, p, training, inplace)
    factors = torch.empty_like(input).bernoulli_(1 - p).div_(1 - p)
    return input.mul_(factors) if inplace else input * factors


CONVOLUTIONS = (
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)

REPLACED = {
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.instance_norm: instance_norm,
    F.linear: linear,
    **{function: functools.partial(linear_in_input, function) for function in CONVOLUTIONS},
    F.dropout: dropout,
}
