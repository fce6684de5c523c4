"""NCSN++: parity of names, forward and VJP; initialisation; options."""

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_option import DEVICE
from ml_collections import ConfigDict

import models
from models import ncsnpp, resampling
from utils import UserError

SMALL = [n for n in golden.names("ncsnpp_") if "n_trainable" not in golden.manifest("qc")[n]]


@pytest.mark.parametrize("name", golden.names("ncsnpp_"))
def test_forward_and_vjp_are_the_published_ones(name):
    net = golden.network(name)
    data = golden.arrays(name)
    x = data["x"].requires_grad_("v" in data)
    out = net(x, data["cond"])
    assert golden.relative_error(out, data["out"]) < (1e-4 if "v" in data else 1e-3)
    if "v" in data:
        (vjp,) = torch.autograd.grad((out * data["v"]).sum(), x)
        assert golden.relative_error(vjp, data["vjp"]) < 1e-4


def config_of(name):
    return ConfigDict(golden.manifest("qc")[name]["config"])


def test_published_size_has_the_published_number_of_trainable_parameters():
    entry = next(e for e in golden.manifest("qc").values() if "n_trainable" in e)
    with torch.device("meta"):
        net = models.create_model(ConfigDict(entry["config"]))
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == entry["n_trainable"]


@pytest.mark.parametrize("kernel", [(1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 2, 3, 2, 5)])
def test_fir_resampling_is_zero_insertion_then_convolution(kernel):
    weights = torch.tensor(kernel, device=DEVICE)
    matrix = torch.outer(weights, weights).float()
    matrix = (matrix / matrix.sum()).flip(0, 1)[None, None]
    length = len(kernel)
    x = torch.randn(2, 1, 6, 8, device=DEVICE)

    zeros = torch.zeros(2, 1, 12, 16, device=DEVICE)
    zeros[..., ::2, ::2] = x
    before, after = (length + 1) // 2, (length - 2) // 2
    padded = F.pad(zeros, (before, after, before, after))
    torch.testing.assert_close(resampling.Upsample(True, kernel)(x), F.conv2d(padded, 4 * matrix))

    before, after = (length - 1) // 2, (length - 2) // 2
    padded = F.pad(x, (before, after, before, after))
    expected = F.conv2d(padded, matrix, stride=2)
    down = resampling.Downsample(True, kernel)
    torch.testing.assert_close(down(x), expected)

    flat = down(torch.ones(1, 1, 16, 16, device=DEVICE))
    torch.testing.assert_close(flat[..., 3:-3, 3:-3], torch.ones(1, 1, 2, 2, device=DEVICE))


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("down", [1, 2])
def test_fir_resampling_keeps_the_memory_format(up, down):
    """Values and gradients are the same, whatever the formats of maps and of their gradients."""
    first = torch.randn(2, 8, 6, 10)

    def resample(x, cotangent_format):
        x = x.requires_grad_()
        out = resampling.fir_resample(x, (1, 2, 3, 2, 5), (3, 2), up, down)
        cotangent = torch.arange(out.numel()).view(out.shape).sin()
        cotangent = cotangent.contiguous(memory_format=cotangent_format)
        return out, torch.autograd.grad(out, x, cotangent)[0]

    expected, over_x = resample(first, torch.contiguous_format)
    assert expected.is_contiguous()
    for cotangent_format in (torch.contiguous_format, torch.channels_last):
        last = first.detach().contiguous(memory_format=torch.channels_last)
        out, gradient = resample(last, cotangent_format)
        for ours, theirs in ((out, expected), (gradient, over_x)):
            assert ours.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(ours, theirs)


def test_weights_are_initialised_as_specified():
    config = config_of(golden.names("ncsnpp_cifar")[0])
    config.model.nf = 64
    torch.manual_seed(0)
    net = models.create_model(config)
    for name, parameter in net.named_parameters():
        if name.endswith((".bias", ".b")):
            assert parameter.abs().max() == 0, name
        elif parameter.ndim >= 2 and parameter.numel() > 2000:
            nin = name.endswith(".W")
            fan_in, fan_out = parameter.shape[:2] if nin else parameter.shape[1::-1]
            area = parameter[0, 0].numel()
            scale = 0.1 if nin else 1.0
            if name.endswith(("Conv_1.weight", "NIN_3.W")):
                scale = 1e-10  # init_scale 0
            bound = np.sqrt(3 * scale / ((fan_in + fan_out) * area / 2))
            assert parameter.abs().max() <= bound * (1 + 1e-6), name
            assert abs(parameter.std() / (bound / np.sqrt(3)) - 1) < 0.1, name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, "other") for name in ("name", *ncsnpp.CHOICES) if name != "resamp_with_conv"),
        ("resamp_with_conv", False),
        ("nf", 7),
        ("ch_mult", (1,) * 7),
    ],
)
def test_unknown_options_get_a_sentence(field, value):
    config = config_of(golden.names("ncsnpp_cifar")[0])
    config.model.update({field: value})
    with pytest.raises(UserError, match=f"config.model.{field}"):
        models.create_model(config)


@pytest.mark.parametrize("name", SMALL)
def test_pushed_directions_are_derivatives(name):
    """Against central differences in float64, for every setting of the options."""
    net = golden.network(name).double()
    data = golden.arrays(name)
    check_directions(net, data["x"][:2].double(), data["cond"][:2])


def test_directions_go_through_the_same_dropout():
    config = config_of(golden.names("ncsnpp_cifar")[0])
    config.model.dropout = 0.5
    config.model.init_scale = 1.0
    torch.manual_seed(2)
    net = models.create_model(config).to(DEVICE).double().train()
    x, cond = torch.rand(2, 3, 32, 32).double(), torch.tensor([0.3, 2.0]).double()
    check_directions(net, x.to(DEVICE), cond.to(DEVICE))


def check_directions(net, x, cond):
    """Compare the three results of a push of two directions; every pass has the same masks."""

    def run(*arguments):
        torch.manual_seed(7)
        with torch.no_grad():
            return net(*arguments)

    v = torch.randn(2, *x.shape, dtype=torch.float64, device=DEVICE)
    out, derivatives = run(x, cond, v)
    torch.testing.assert_close(out, run(x, cond))
    h = 1e-7
    for direction, derivative in zip(v, derivatives):
        expected = (run(x + h * direction, cond) - run(x - h * direction, cond)) / (2 * h)
        scale = expected.abs().max()
        assert scale > 0
        assert (derivative - expected).abs().max() < 1e-5 * scale
