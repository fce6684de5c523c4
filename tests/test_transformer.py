"""The transformer: its options, and its gradients against double backward."""

import pytest
import tiny
import torch
from oracles import double_backward

import losses
import models
import sde_lib
from configs.demo import digits_transformer
from models import compute, jacobian
from models.scores import Score
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
    objective = losses.QuasiConservative(
        Score(net, VE), VE, 1e-5, balancing_fac=0.3, slices=2, estimator=name
    )
    torch.manual_seed(11)
    loss = double_backward.quasi_conservative(objective, x, **drawn)
    expected = torch.autograd.grad(loss, trained(net))
    torch.manual_seed(11)
    surrogate, values = objective(x, None, drawn)
    torch.testing.assert_close(values["loss"], loss.detach())
    check_gradients(torch.autograd.grad(surrogate, trained(net)), expected)


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
