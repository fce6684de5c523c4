"""The transformer: its options, its gradients against double backward, its runs and commands."""

import json

import numpy as np
import pytest
import tiny
import torch
from commands import command
from oracles import double_backward
from test_run_lib import assert_equal, cache, here, newest  # noqa: F401 (fixtures)

import losses
import models
import run_lib
import sde_lib
from configs.demo import digits_transformer
from models import compute, jacobian
from models.jacobian import vjp
from models.scores import EnergyScore, Score
from storage.files import load_npz
from utils import UserError

CPU = torch.device("cpu")
VE = sde_lib.VESDE(0.1, 8.0)
PATH = tiny.ROOT / "configs/demo/digits_transformer.py"
NCSNPP = ("model.nf", "model.ch_mult", "model.num_res_blocks", "model.attn_resolutions")
SMALL = {
    **{name: value for name, value in tiny.changes("cache").items() if name not in NCSNPP},
    "model.width": 8,
    "model.depth": 2,
    "model.heads": 2,
    "model.mlp_ratio": 2,
    "loss.balancing_fac": 0.01,
}


def config(**more):
    """The demo's transformer, made tiny; `more` is fields with "__" for the dot."""
    result = digits_transformer.get_config()
    more = {name.replace("__", "."): value for name, value in more.items()}
    result.update_from_flattened_dict({**SMALL, **more})
    return result


def network(**more):
    """A float64 transformer with dropout, whose gates are open."""
    torch.manual_seed(0)
    net = models.create_model(config(model__dropout=0.3, **more)).double().train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def draws(slices=1):
    generator = torch.Generator().manual_seed(5)
    x, z = torch.rand(2, 3, 1, 8, 8, generator=generator, dtype=torch.float64)
    u = torch.rand(3, generator=generator, dtype=torch.float64)
    v = torch.randn(3, slices, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, {"u": u, "z": z, "v": v}


def trained(net):
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def check_gradients(ours, expected):
    """To 1e-6 of each parameter's largest entry; the keys' bias has the gradient zero."""
    largest = max(float(b.abs().max()) for b in expected)
    for a, b in zip(ours, expected):
        assert (a - b).abs().max() <= 1e-6 * max(float(b.abs().max()), 1e-6 * largest)


# ---------------------------------------------------------------- the network


def test_it_begins_as_the_score_of_a_normal_distribution():
    """Of images that are N(0, 1) in [−1, 1], N(½, ¼) in [0, 1]: s = −(x − ½)/(¼ + σ²)."""
    net = models.create_model(config()).double()
    x, sigma = torch.rand(2, 1, 8, 8).double(), torch.tensor([0.1, 3.0]).double()
    expected = (0.5 - x) / (0.25 + sigma**2)[:, None, None, None]
    torch.testing.assert_close(net(x, sigma), expected)


def test_a_pixel_depends_on_its_patch_until_the_gates_open():
    x = torch.rand(1, 1, 8, 8).double().requires_grad_()
    seen = []
    for closed in (True, False):
        net = network(model__patch_size=4).eval()
        if closed:
            for block in net.blocks:
                torch.nn.init.zeros_(block.gates.weight)
                torch.nn.init.zeros_(block.gates.bias)
        out = net(x, torch.tensor([0.5]).double())
        assert out.shape == x.shape
        (gradient,) = torch.autograd.grad(out[0, 0, 1, 6], x)
        seen.append(gradient[0, 0] != 0)
    patch, image = seen
    assert patch[:4, 4:].all()
    assert patch.sum() == 16
    assert image.all()


def test_centred_images_and_others_are_seen_alike():
    """Images in [0, 1] with noise σ are others in [−1, 1] with 2σ; scores are half as large."""
    ours, other = network().eval(), network(data__centered=True).eval()
    x, sigma = torch.rand(2, 1, 8, 8).double(), torch.tensor([0.1, 3.0]).double()
    with torch.no_grad():
        for net in (ours, other):
            net.fourier.W.zero_()
        torch.testing.assert_close(ours(x, sigma), 2 * other(2 * x - 1, 2 * sigma))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model.patch_size", 3, "image_size"),
        ("model.heads", 3, "heads"),
        ("training.sde", "vpsde", "training.sde"),
        ("model.name", "ncsnpp", "model.nf"),
    ],
)
def test_mistaken_options_get_a_sentence(field, value, named):
    with pytest.raises(UserError, match=named):
        models.create_model(config(**{field.replace(".", "__"): value}))


# ---------------------------------------------------------------- gradients, in float64


@pytest.mark.parametrize("name", jacobian.ESTIMATORS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_qc_gradient_is_that_of_double_backward(name, mode):
    """With dropout, too, whose masks every pass has alike; two slices."""
    net = network().train(mode == "train")
    x, drawn = draws(slices=2)
    estimator = jacobian.ESTIMATORS[name]
    objective = losses.QuasiConservative(
        Score(net, VE), VE, 1e-5, balancing_fac=0.3, slices=2, estimator=estimator
    )
    torch.manual_seed(11)
    loss = double_backward.quasi_conservative(objective, x, **drawn)
    expected = torch.autograd.grad(loss, trained(net))
    torch.manual_seed(11)
    surrogate, values = objective(x, None, drawn)
    torch.testing.assert_close(values["loss"], loss.detach())
    check_gradients(torch.autograd.grad(surrogate, trained(net)), expected)


def test_the_gradient_of_a_constrained_model_is_that_of_double_backward():
    net = network()
    score = EnergyScore(net, VE)
    x, drawn = draws()
    del drawn["v"]
    torch.manual_seed(11)
    loss = losses.DSM(score, VE, 1e-5).loss(x, **drawn).mean()
    expected = torch.autograd.grad(loss, trained(net), allow_unused=True)
    torch.manual_seed(11)
    surrogate, values = losses.EnergyDSM(score, VE, 1e-5)(x, None, drawn)
    torch.testing.assert_close(values["loss"], loss.detach())
    check_gradients(torch.autograd.grad(surrogate, trained(net)), expected)


def test_the_jacobian_of_a_constrained_model_is_symmetric():
    score = EnergyScore(network().eval(), VE)
    x, t = torch.rand(2, 1, 8, 8).double(), torch.tensor([0.3, 0.7]).double()
    v = torch.randn(2, *x.shape).double()
    s, p = score.value_and_jvp(x, t, v)
    torch.testing.assert_close(s, score(x, t))
    torch.testing.assert_close(p, vjp(score, x, t, v))
    assert float(p.abs().max()) > 1e-3


# ---------------------------------------------------------------- ways to compute


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "bound"),
    [({"channels_last": True}, 1e-5), ({"compile": True}, 1e-5), ({"precision": "bf16"}, 0.05)],
)
def test_every_way_to_compute_gives_the_same_derivatives(more, bound):
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.3, 0.7])
    v = torch.randn(2, *x.shape)
    results = []
    for way in ({}, more):
        settings = config().compute
        settings.update(way)
        net = compute.prepare(network().float().eval(), settings, CPU)
        results.append(Score(net, VE).value_and_jvp(x, t, v))
    for ours, expected in zip(results[1], results[0]):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() <= bound * expected.norm()


# ---------------------------------------------------------------- runs and commands


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"data__cache": str(tmp_path_factory.mktemp("transformer") / "cache")}


@pytest.mark.slow
def test_a_run_that_is_cut_continues_bit_for_bit(here, images):  # noqa: F811
    run_lib.train(config(**images), "whole")
    run_lib.train(config(training__n_iters=5, **images), "parts")
    run_lib.train(config(**images), "parts")
    assert_equal(newest("whole"), newest("parts"))
    with pytest.raises(UserError, match=r"config\.model\.width 8 \(now 16\)"):
        run_lib.train(config(model__width=16, training__n_iters=9, **images), "parts")


@pytest.mark.slow
def test_the_published_commands(tmp_path):
    """From training with the regulariser to NLL, asymmetry, PC and ODE samples."""
    shape = [f"--config.{name}={value}" for name, value in SMALL.items()]
    line = f"--config {PATH} --workdir W"

    def run(script, arguments, *more):
        done = command(f"{script} {line} {arguments}", tmp_path, [*shape, *more])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("main.py", "--slices 2", "--config.training.n_iters=2", "--config.training.snapshot_freq=1")
    few = "--checkpoint_idx 2 --bs 180"
    run("run_lib_evaluation_nll.py", f"{few} --atol 0.1 --rtol 0.1 --calculate")
    assert "bits/dim over 360 images" in run("run_lib_evaluation_nll.py", "--read")
    run("run_lib_evaluation_asym.py", f"{few} --nl 2 --calculate")
    assert "over 2 noise levels" in run("run_lib_evaluation_asym.py", "--read")
    run("run_lib_sampling.py", "--division_idx 0 --checkpoint_idx 2")
    loose = ("--config.sampling.atol=0.1", "--config.sampling.rtol=0.1")
    run("run_lib_sampling.py", "--division_idx 1 --ode", *loose)

    root = tmp_path / "results/W"
    for samples in ("eval_sampling/0/samples_0.npz", "eval_sampling_ode/1/samples_0.npz"):
        assert load_npz(root / samples, "samples")["samples"].shape == (10, 8, 8, 1)
    metrics = json.loads((root / "metrics.json").read_text())
    assert np.isfinite(metrics["nll"]["bits_per_dim"])
    assert metrics["asym"]["nasym"] != 0
