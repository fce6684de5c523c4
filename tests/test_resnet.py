"""The noise-conditioned classifiers: parity, and their batch norms."""

import copy

import golden
import pytest
import torch
from device_option import DEVICE
from ml_collections import ConfigDict
from oracles.published_way import published_layers

import models


def errors(ours, theirs):
    """Per image, the largest error relative to the largest entry of all."""
    return (ours.detach() - theirs).abs().flatten(1).amax(1) / theirs.abs().max()


@pytest.mark.parametrize("name", golden.names("classifier_", "dlsm"))
def test_parity(name):
    """Logits, VJP, and the names and the order of the state dict (checked in golden).

    A ReLU's derivative jumps at 0. Of the millions of activations of an image the nearest to 0
    is 4·10⁻⁷, within rounding, and the side that it falls on moves single entries of the VJP by a
    hundredth; float64 disagrees with the golden numbers in one image for that reason. So every
    image must agree in one of several roundings.
    """
    data = golden.arrays(name)
    network = golden.classifier(name)
    best = torch.full((len(data["x"]),), torch.inf, device=DEVICE)
    for seed in range(8):
        noise = torch.randn(data["x"].shape, generator=torch.Generator().manual_seed(seed))
        x = (data["x"] * (1 + 1e-7 * seed * noise.to(DEVICE))).requires_grad_()
        logits = network(x, data["cond"])
        assert golden.relative_error(logits, data["logits"]) < 1e-4
        (vjp,) = torch.autograd.grad(logits, x, data["v"])
        best = torch.minimum(best, errors(vjp, data["vjp"]))
        if best.max() < 1e-4:
            return
    raise AssertionError(f"relative errors of the images' VJPs: {best.tolist()}")


def config(**changes):
    classifier = {"model": "resnet_small_cond", "classes": 4, "nf": 8, "fourier_scale": 16.0}
    return ConfigDict(
        {"classifier": classifier | changes, "data": {"num_channels": 1, "image_size": 8}}
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return models.create_classifier(config()).to(DEVICE).double()


def test_a_pass_counts_the_batch_once(network):
    """The running statistics are those of PyTorch's batch norms."""
    twin = copy.deepcopy(network)
    x, sigma = (
        torch.rand(6, 1, 8, 8, device=DEVICE).double(),
        torch.rand(6, device=DEVICE).double() + 0.1,
    )
    network(x, sigma)
    with published_layers(torch.device(DEVICE)):
        twin(x, sigma)
    torch.testing.assert_close(network.state_dict(), twin.state_dict())
    assert int(network.classifier["classifier"].bn1.num_batches_tracked) == 1
