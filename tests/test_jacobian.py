"""Both estimators against exact Jacobians, in float64."""

import ast
import itertools
import pathlib
import re
import shutil
import sys

import golden
import pytest
import torch
from device_option import DEVICE

import models
import sde_lib
from models import jacobian
from models.jacobian import value_and_jvp
from models.scores import EnergyScore, Score

torch.manual_seed(0)
WEIGHTS = [torch.randn(6, 4, device=DEVICE).double(), torch.randn(4, 6, device=DEVICE).double()]


def field(x):
    """A small network on vectors (B, 4)."""
    return torch.tanh(x @ WEIGHTS[0].T) @ WEIGHTS[1].T


def exact(x):
    """J (B, 4, 4) at x (B, 4)."""
    return torch.func.vmap(torch.func.jacrev(field))(x[:, None])[:, 0, :, 0]


@pytest.mark.parametrize("name", jacobian.ESTIMATORS)
def test_over_a_full_sign_basis_the_mean_is_exact(name):
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), device=DEVICE).double()
    x = torch.randn(3, 4, device=DEVICE).double()
    v = signs[:, None].expand(-1, 3, -1)
    J = exact(x)
    expected = 0.5 * (J - J.transpose(1, 2)).square().sum((1, 2))
    _, p = value_and_jvp(field, x, v)
    _, q = jacobian.value_and_vjp(lambda x, t: field(x), x, torch.zeros(len(x)), v)
    values = jacobian.ESTIMATORS[name](p, q)
    torch.testing.assert_close(values.mean(0), expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- several vectors at once


def ncsnpp():
    """A small NCSN++ that drops out half of its units, in float64, and images and times for it."""
    torch.manual_seed(0)
    config = golden.ConfigDict(
        golden.manifest("qc")[golden.manifest("qc")["loss_dsm"]["model"]]["config"]
    )
    config.model.dropout = 0.5
    config.model.init_scale = 1.0
    size = config.data.image_size
    x = torch.rand(2, config.data.num_channels, size, size, dtype=torch.float64)
    return models.create_model(config).double().train(), x, torch.rand(2, dtype=torch.float64)


def pytorch_dropout():
    """The same of PyTorch's own layers."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(2, 9, 3, padding=1), torch.nn.Dropout2d(0.5), torch.nn.Tanh(),
        torch.nn.Dropout(0.5), torch.nn.Conv2d(9, 2, 3, padding=1),
    ).double()  # fmt: skip
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    return WithoutCondition(layers), x, torch.rand(3, dtype=torch.float64)


class WithoutCondition(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, condition):
        return self.layers(x)


@pytest.mark.parametrize("kind", [Score, EnergyScore])
@pytest.mark.parametrize("make", [ncsnpp, pytorch_dropout])
def test_several_vectors_at_once_are_several_in_turn(make, kind):
    """In one forward pass, through one masked network."""
    net, x, t = make()
    score = kind(net, sde_lib.VESDE())
    v = torch.randn(3, *x.shape, dtype=torch.float64).sign()

    def of(v):
        torch.manual_seed(7)
        return jacobian.value_and_vjp(score, x, t, v)[1], float(torch.rand(()))

    in_turn, states = zip(*(of(w[None]) for w in v))
    calls = []
    net.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    at_once, state = of(v)
    torch.testing.assert_close(at_once, torch.cat(in_turn), rtol=1e-9, atol=1e-12)
    assert set(states) == {state}
    assert calls == [len(x)]
    net.eval()
    assert not torch.allclose(at_once, jacobian.value_and_vjp(score, x, t, v)[1])


# ---------------------------------------------------------------- of any score


class Attentive(torch.nn.Module):
    """A score of images: convolutions, norms, attention over the pixels, and a time."""

    def __init__(self):
        super().__init__()
        self.inward = torch.nn.Conv2d(2, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer_norm = torch.nn.LayerNorm(8)
        self.outward = torch.nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x, t):
        h = torch.tanh(self.norm(self.inward(x))) + t[:, None, None, None]
        pixels = self.layer_norm(h.flatten(2).mT)
        attended, _ = self.attention(pixels, pixels, pixels, need_weights=False)
        return self.outward(h + attended.mT.unflatten(2, h.shape[2:]))


def attentive(rows=2):
    torch.manual_seed(0)
    x = torch.randn(rows, 2, 3, 3, device=DEVICE).double()
    return Attentive().to(DEVICE).double(), x, torch.rand(rows, device=DEVICE).double()


def whole_jacobian(score, x, t):
    """J (B, D, D) by reverse mode, with a graph."""
    rows = []
    for image, time in zip(x, t):

        def flat(pixels, shape=image.shape, time=time):
            return score(pixels.reshape(1, *shape), time[None]).flatten()

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            rows.append(
                torch.autograd.functional.jacobian(flat, image.flatten(), create_graph=True)
            )
    return torch.stack(rows)


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("name", [*jacobian.ESTIMATORS, jacobian.EXACT])
def test_the_regulariser_of_any_network_and_its_gradient(name, K):
    net, x, t = attentive()
    v = torch.randn(K, *x.shape, device=DEVICE).double().sign()
    J = whole_jacobian(net, x, t)
    p, q = (torch.einsum(f"{ij},kbj->kbi", J, v.flatten(2)) for ij in ("bij", "bji"))
    expected = {
        "paper": ((q * q).sum(2) - (p * q).sum(2)).mean(0),
        "skew": 0.5 * (p - q).square().sum(2).mean(0),
        "exact": 0.5 * (J - J.mT).square().sum((1, 2)),
    }[name]
    weights = torch.tensor([1.0, -0.3], device=DEVICE).double()
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(
        (weights * expected).sum(), parameters, allow_unused=True, materialize_grads=True
    )

    s, r = jacobian.qc_regulariser(net, x, t, v, name)
    torch.testing.assert_close(s, net(x, t), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(r, expected, rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(
        (weights * r).sum(), parameters, allow_unused=True, materialize_grads=True
    )
    scale = max(float(g.abs().max()) for g in gradients)
    for a, b in zip(ours, gradients):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * scale)

    asym, nasym = jacobian.measure_asymmetry(net, x, t, v, name)
    torch.testing.assert_close(asym, expected.detach(), rtol=1e-10, atol=1e-12)
    square = J.square().sum((1, 2)) if name == "exact" else q.square().sum(2).mean(0)
    torch.testing.assert_close(nasym, (0.5 * expected / (square + 1e-8)).detach())


def test_group_norms_of_channels_last_maps():
    """And dropout behind them has the masks of an ordinary pass."""
    layers = torch.nn.Conv2d(2, 8, 1), torch.nn.GroupNorm(2, 8), torch.nn.Dropout(0.5)
    net = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 2, 1)).to(DEVICE, torch.double)
    net.to(memory_format=torch.channels_last)
    x, v = torch.randn(2, 3, 2, 4, 4, device=DEVICE, dtype=torch.double)
    x = x.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    value, Jv = jacobian.value_and_jvp(net, x, v[None])
    torch.manual_seed(0)
    torch.testing.assert_close(value, net(x))
    torch.manual_seed(0)
    _, expected = torch.autograd.functional.jvp(net, x, v, strict=True)
    torch.testing.assert_close(Jv[0], expected)


@pytest.mark.parametrize("name", [*jacobian.ESTIMATORS, jacobian.EXACT])
def test_a_score_without_parameters_has_a_regulariser(name):
    """s = Ax, with drawn vectors, as many as make the mean exact to its standard error."""
    A = torch.randn(4, 4, device=DEVICE).double()
    x = torch.randn(5, 4, device=DEVICE).double()
    generator = torch.Generator(DEVICE).manual_seed(2)
    s, r = jacobian.qc_regulariser(lambda x, t: x @ A.T, x, x[:, 0], 4000, name, generator)
    torch.testing.assert_close(s, x @ A.T)
    expected = 0.5 * (A - A.T).square().sum()
    torch.testing.assert_close(r, expected.expand(5), rtol=0.1, atol=1e-9)
    generator.manual_seed(2)
    _, again = jacobian.qc_regulariser(lambda x, t: x @ A.T, x, x[:, 0], 4000, name, generator)
    assert torch.equal(r, again)


def test_the_gradient_with_respect_to_the_images_is_right():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 3, 4, dtype=torch.float64).sign()
    weights = WEIGHTS[0].cpu(), WEIGHTS[1].cpu()

    def regulariser(x):
        score = lambda x, t: torch.tanh(x @ weights[0].T) @ weights[1].T  # noqa: E731
        return jacobian.qc_regulariser(score, x, x[:, 0], v)[1]

    assert torch.autograd.gradcheck(regulariser, (x,))


@pytest.mark.parametrize("name", [*jacobian.ESTIMATORS, jacobian.EXACT])
@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.BatchNorm2d(2),
        torch.nn.BatchNorm2d(2, track_running_stats=False),
        lambda h: torch.nn.functional.batch_norm(h, None, None, training=True),
    ],
)
def test_a_norm_over_the_batch_is_refused(norm, name):
    x, t = torch.rand(3, 2, 2, 2), torch.ones(3)
    for function in (jacobian.qc_regulariser, jacobian.measure_asymmetry):
        with pytest.raises(ValueError, match="batch norm"):
            function(lambda x, t: norm(x), x, t, 1, name)
    if isinstance(norm, torch.nn.BatchNorm2d) and norm.track_running_stats:
        norm.eval()
        _, r = jacobian.qc_regulariser(lambda x, t: norm(x), x, t, 1, name)
        assert r.abs().max() < 1e-6
        norm.train()


@pytest.mark.parametrize(
    ("vectors", "estimator", "named"),
    [
        (0, "paper", "vectors"),
        (1.5, "paper", "vectors"),
        (torch.ones(3, 4), "paper", "vectors"),
        (torch.ones(2, 1, 4), "paper", "vectors"),
        (torch.ones(0, 3, 4), "paper", "vectors"),
        (1, "none such", "estimator"),
    ],
)
def test_arguments_that_cannot_be_are_refused(vectors, estimator, named):
    x = torch.rand(3, 4)
    for function in (jacobian.qc_regulariser, jacobian.measure_asymmetry):
        with pytest.raises(ValueError, match=named):
            function(lambda x, t: x, x, x[:, 0], vectors, estimator)


# ---------------------------------------------------------------- a project of one's own


def test_the_file_imports_pytorch_alone():
    tree = ast.parse(pathlib.Path(jacobian.__file__).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert {name.split(".")[0] for name in names} - {*sys.stdlib_module_names} == {"torch"}


def test_the_documented_loop_runs_on_a_copy(tmp_path, monkeypatch):
    page = pathlib.Path(__file__).parent.parent / "docs/any_model.md"
    blocks = re.findall(r"```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    shutil.copy(jacobian.__file__, tmp_path / "jacobian.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jacobian", raising=False)
    names = {}
    for block in blocks[:2]:
        exec(block, names)
    assert pathlib.Path(sys.modules["jacobian"].__file__).parent == tmp_path
    assert names["loss"].isfinite()
    assert names["r"].requires_grad
    assert (names["nasym"].shape, names["asym"].shape) == ((32,), (32,))
    assert names["pictures"].shape == (4, 8, 8, 1)
    assert names["bits"].isfinite().all()


@pytest.mark.parametrize(
    ("x", "t", "score", "field"),
    [
        (torch.ones(2, 3), torch.ones(2, 1), lambda x, t: x, "t has shape"),
        (torch.ones(2, 3), 0.5, lambda x, t: x, "t has the value"),
        (torch.ones(2, 3, dtype=torch.uint8), torch.ones(2), lambda x, t: x, "x has the type"),
        (torch.ones(2, 3), torch.ones(2), lambda x, t: x[:, :2], "shaped as x"),
        (torch.ones(2, 3), torch.ones(2), lambda x, t: (x, x), "shaped as x"),
        (torch.ones(2, 3), torch.ones(2), lambda x, t: x.detach(), "no graph to x"),
    ],
)
def test_other_inputs_and_scores_are_named(x, t, score, field):
    for function in (jacobian.qc_regulariser, jacobian.measure_asymmetry):
        with pytest.raises(ValueError, match=field):
            function(score, x, t, 1, "skew")


def test_products_of_float16_do_not_overflow():
    x, t = torch.ones(2, 3, dtype=torch.float16), torch.ones(2)
    asym, nasym = jacobian.measure_asymmetry(lambda x, t: 300 * x.flip(1), x, t, vectors=2)
    assert asym.dtype == torch.float32
    assert torch.isfinite(nasym).all()


def test_both_products_have_the_same_dropout():
    """A score that is symmetric for every mask has no asymmetry, even in training."""
    x, t = torch.randn(4, 6), torch.ones(4)
    dropout = torch.nn.Dropout(0.5)
    asym, _ = jacobian.measure_asymmetry(lambda x, t: dropout(x), x, t, vectors=3)
    torch.testing.assert_close(asym, torch.zeros(4))


def test_the_regulariser_has_a_value_without_gradients():
    x, t = torch.randn(4, 6), torch.ones(4)
    with torch.no_grad():
        _, r = jacobian.qc_regulariser(
            lambda x, t: x.flip(1).tanh(), x, t, 2, lambda p, q: jacobian.dot(q, q)
        )
    assert r.shape == (4,)
    assert not r.requires_grad
