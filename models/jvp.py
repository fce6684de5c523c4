"""Jacobian-vector products J v, J = ∂f/∂x, in one pass with the values, and their gradients.

`NormAct` and `add_to_values` are the parts of a layer that carries tangents: its maps have
(1 + m)·B rows, the B of the values first and then those of each of m tangents. Linear maps act on
all rows at once. Compared with forward mode, whose reverse derivatives PyTorch derives, these
layers save fewer tensors and can be compiled. They save tensors in the input's type and sum in
float32 or wider.

`value_and_jvp` takes the products of any function by `torch.func.jvp`. `higher_derivatives`
replaces functions of PyTorch 2.14 whose higher derivatives are missing or wrong.
"""

import contextlib
import functools
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from models.dropout import apply_mask
from utils import UserError

# ---------------------------------------------------------------- of networks and functions


def network_value_and_jvp(
    network: Callable, x: torch.Tensor, cond: torch.Tensor, v: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """network(x, cond, **options) (B, …) and J v (m, B, …) for m vectors v (m, B, …).

    A network with the attribute ``carries_tangents = True`` is called as
    ``network(x, cond, v, **options)`` and returns both. For any other, see `value_and_jvp`.
    Dropout masks are those of an ordinary pass from the same random state, equal for all vectors.

    Raises:
        UserError: a batch norm takes its statistics of the batch.
    """
    if getattr(network, "carries_tangents", False):
        return network(x, cond, v, **options)
    require_separate_images(network)
    return value_and_jvp(lambda x: network(x, cond, **options), x, v)


def value_and_jvp(
    f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x) (B, …) and J v (m, B, …) for m vectors v, shaped (m, *x.shape), in one pass.

    Both can be differentiated. Custom autograd functions within `f` need a `jvp` and a `vmap` rule.
    """
    _load()
    with eager_higher_derivatives():
        return torch.func.vmap(
            lambda tangent: torch.func.jvp(f, (x,), (tangent,)),
            out_dims=(None, 0),
            randomness="same",
        )(v)


@functools.cache
def _load():
    """Load what `torch.func.jvp` needs, without the warning of PyTorch's own use of `torch.jit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def require_separate_images(network: Callable) -> None:
    """Raise a UserError if a batch norm in `network` takes its statistics of the batch.

    The score of an image then depends on the other images, and J is not that of one image.
    """
    modules = network.named_modules() if isinstance(network, torch.nn.Module) else ()
    for name, module in modules:
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise UserError(
                f"{type(network).__name__} has a batch norm ({name}), which in training lets the "
                "images of a batch depend on each other; products with the Jacobian of one "
                "image's score need a network without, for example with group or layer norms."
            )


# ---------------------------------------------------------------- layers that carry tangents


def split_rows(x: torch.Tensor, tangents: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of the values (B, …) and of the tangents (m, B, …)."""
    values = x[: len(x) // (1 + tangents)]
    return values, x[len(values) :].unflatten(0, (tangents, len(values)))


def join_rows(values: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """The inverse of `split_rows`."""
    return torch.cat([values, tangents.flatten(0, 1)])


def add_to_values(x: torch.Tensor, shift: torch.Tensor, tangents: int) -> torch.Tensor:
    """Add `shift` (B or 1, C, 1, 1), a constant without tangents, to the values.

    With tangents `x` is overwritten: it must be a new tensor that nothing else uses.
    """
    if not tangents:
        return x + shift
    count = len(x) // (1 + tangents)
    shift = shift.expand(count, -1, -1, -1)
    return x.add_(F.pad(shift, (0, 0, 0, 0, 0, 0, 0, len(x) - count)))


class NormAct(Function):
    """Group norm, activation and dropout of rows ((1 + m)·B, C, H, W), shaped alike.

    The values are gain·kept·f(y) with y = w·n + b, n = (x − mean)/std normalised by groups and f an
    `Activation`. With P(d) = d − mean(d) − n·mean(n·d), the means over a group, the tangents of n
    are h = P(dx)/std, and those of the output gain·kept·f′(y)·w·h.

    Args:
        shift: added to the values first, a constant without tangents (B or 1, C, 1, 1); or None.
        kept: dropout's mask of the values and of every tangent (B, C, H, W); or None.
        gain: the factor of what is kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        shift: torch.Tensor | None,
        kept: torch.Tensor | None,
        gain: float,
        weight: torch.Tensor,
        bias: torch.Tensor,
        groups: int,
        eps: float,
        act: Any,
        tangents: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, shift, kept, weight, bias)
        ctx.gain, ctx.groups, ctx.eps, ctx.act, ctx.tangents = gain, groups, eps, act, tangents
        normal, _, h, _ = _normalise(x, shift, groups, eps, tangents)
        weight, bias = _per_channel(weight, groups), _per_channel(bias, groups)
        y = normal * weight + bias
        kept = kept if kept is None else kept.view_as(y)
        values = apply_mask(act.function(y), kept, gain).to(x.dtype)
        d = (h * apply_mask(act.derivative(y) * weight, kept, gain)).to(x.dtype)
        # Flattened before they are joined, channels-last maps stay so.
        return join_rows(values.flatten(1, 2), d.flatten(2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, shift, kept, weight, bias = ctx.saved_tensors
        normal, scale, h, slope = _normalise(x, shift, ctx.groups, ctx.eps, ctx.tangents)
        weight, bias = _per_channel(weight, ctx.groups), _per_channel(bias, ctx.groups)
        y = normal * weight + bias
        over_out, over_d = split_rows(_wide(grad).unflatten(1, (ctx.groups, -1)), ctx.tangents)
        kept = kept if kept is None else kept.view_as(y)
        over_out, over_d = (apply_mask(over, kept, ctx.gain) for over in (over_out, over_d))
        derivative = ctx.act.derivative(y)
        products = (over_d * h).sum(0)
        over_y = over_out * derivative + products * (ctx.act.second(y) * weight)
        products = products * derivative
        over_bias = over_y.sum(CHANNEL)
        over_weight = (products + over_y * normal).sum(CHANNEL)

        a, e = over_y * weight, over_d * (derivative * weight)
        # With the means ν = mean(n·e) and μ = mean(n·dx) (`slope`): the values get
        # (P(a − Σ (μe + νdx)/std) − n·Σ mean(e·h))/std and every tangent P(e)/std. Here P(dx)/std
        # is h.
        along = _mean(normal * e)
        a = a - (slope * e).sum(0) * scale
        over_values = a - _mean(a) - normal * (_mean(normal * a) + _mean(products * weight))
        over_values = (over_values - (along * h).sum(0)) * scale
        over_tangents = (e - _mean(e) - normal * along) * scale
        over_shift = None
        if shift is not None:
            over_shift = over_values.sum((-2, -1)).view(len(y), -1, 1, 1).sum_to_size(shift.shape)
        over_values, over_tangents = over_values.to(x.dtype), over_tangents.to(x.dtype)
        rows = join_rows(over_values.flatten(1, 2), over_tangents.flatten(2, 3))
        parameters = over_weight.flatten(), over_bias.flatten()
        return rows, over_shift, None, None, *parameters, None, None, None, None


def group_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
) -> torch.Tensor:
    """w·n + b, n of x (B, C, H, W) normalised by groups, in x's memory format and at least float32.

    Made of primitive operations, which a compiler fuses with what follows.
    """
    x = _wide(x)
    grouped = x.unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(grouped, GROUP, correction=0, keepdim=True)
    slope = torch.rsqrt(variance + eps) * _per_channel(weight, groups)
    offset = _per_channel(bias, groups) - mean * slope
    return torch.addcmul(offset.flatten(1, 2), x, slope.flatten(1, 2))


# Of maps (rows, groups, channels of a group, H, W): a group, and a channel of all rows.
GROUP, CHANNEL = (-3, -2, -1), (0, -2, -1)


def _normalise(x, shift, groups, eps, tangents):
    """n, 1/std, h and mean(n·dx) of rows (rows, C, H, W), in float32 or wider."""
    values, d = split_rows(_wide(x).unflatten(1, (groups, -1)), tangents)
    if shift is not None:
        values = values + _wide(shift).unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(values, GROUP, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    normal = (values - mean) * scale
    slope = _mean(normal * d)
    h = (d - _mean(d) - normal * slope) * scale
    return normal, scale, h, slope


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(parameter, groups):
    return parameter.view(groups, -1, 1, 1)


def _mean(x):
    return x.mean(GROUP, keepdim=True)


# ---------------------------------------------------------------- higher derivatives


@contextlib.contextmanager
def higher_derivatives() -> Iterator[None]:
    """Within the context attention and the functions of `REPLACED` have higher derivatives."""
    with sdpa_kernel(SDPBackend.MATH), Replaced():
        yield


@contextlib.contextmanager
def eager_higher_derivatives() -> Iterator[None]:
    """`higher_derivatives` without compiled code, which cannot be differentiated twice."""
    with torch.compiler.set_stance("force_eager"), higher_derivatives():
        yield


class Replaced(TorchFunctionMode):
    """Within the context the functions in `REPLACED` are called in place of PyTorch's."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        function = REPLACED.get(function, function)
        return function(*arguments, **(options or {}))


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """`F.layer_norm`, as a group norm of one group.

    In PyTorch 2.14 the gradient of the layer norm's tangent is wrong, and its third derivative.
    """
    features = tuple(normalized_shape)
    rows = input.reshape(-1, math.prod(features))
    weight, bias = (p if p is None else p.flatten() for p in (weight, bias))
    # The result is contiguous as PyTorch's is; the order of dropout's draws depends on that.
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
    return F.group_norm(input, input.shape[1], weight, bias, eps)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear` of rows: PyTorch may multiply each image by its own copy of the weight."""
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
    """A function such as `F.conv2d` of the values and, without the bias, of the tangents.

    PyTorch also computes it with a zero tangent of the weight, a third product.
    """
    values, tangents = unpack_dual(input)
    if tangents is None or unpack_dual(weight).tangent is not None:
        return function(input, weight, bias, *arguments, **options)
    out = function(values, weight, bias, *arguments, **options)
    return make_dual(out, function(tangents, weight, None, *arguments, **options))


def glu(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """`F.glu`: a·sigmoid(b) of the two halves. PyTorch's tangent has no gradient."""
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


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
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.instance_norm: instance_norm,
    F.linear: linear,
    **{function: functools.partial(linear_in_input, function) for function in CONVOLUTIONS},
    F.glu: glu,
    F.dropout: dropout,
}
