"""DLSM: parity, its gradient against double backward, and two Gaussian classes."""

import copy
import pathlib
import re

import golden
import pytest
import torch
import torch.nn.functional as F
from device_option import DEVICE
from ml_collections import ConfigDict
from oracles import double_backward
from oracles.published_way import published_layers
from test_losses import check_gradient_norms
from two_gaussians import TwoGaussians

import losses
import models
import sde_lib
from models.scores import Score

VE = sde_lib.VESDE()


def objective(entry, classifier, score, sde=VE):
    """The objective of a manifest entry's settings."""
    names = ("loss_type", "weighting_dlsm", "weighting_ce", "coef")
    config = ConfigDict({"model": {name: entry[name] for name in names}})
    return losses.classifier_objective(config, classifier, score, sde)


@pytest.mark.parametrize("name", golden.names("dlsm_loss_", "dlsm"))
def test_dlsm_is_the_published_one(name):
    entry, data = golden.manifest("dlsm")[name], golden.arrays(name)
    classifier = golden.classifier("classifier_resnet18_cond").train(entry["train_mode"])
    score = Score(golden.network("score_model", "dlsm").requires_grad_(False), VE)
    loss_of = objective(entry, classifier, score)
    assert loss_of.eps == entry["eps"]
    loss, values = loss_of(data["x"], data["y"], {"u": data["u_t"], "z": data["z"]})
    loss.backward()
    loss = loss.detach()
    assert float(loss) == float(values["loss"])
    assert float(loss) == pytest.approx(float(data["loss"]), rel=1e-5)
    check_gradient_norms(classifier, entry["grad_norm"])
    conv1 = classifier.classifier["classifier"].conv1.weight.grad
    assert golden.relative_error(conv1, data["grad_conv1"]) < 1e-4


# ---------------------------------------------------------------- the gradient


def small_problem(dtype):
    """A small classifier in train mode, a score, images, labels and draws."""
    torch.manual_seed(0)
    classifier = {"model": "resnet_small_cond", "classes": 4, "nf": 8, "fourier_scale": 16.0}
    config = ConfigDict({"classifier": classifier, "data": {"num_channels": 1, "image_size": 8}})
    network = models.create_classifier(config).to(DEVICE, dtype).train()
    x, labels = (
        torch.rand(8, 1, 8, 8, dtype=dtype, device=DEVICE),
        torch.randint(4, (8,), device=DEVICE),
    )
    draws = {"u": torch.rand(8, dtype=dtype, device=DEVICE), "z": torch.randn_like(x)}
    return network, (lambda x, t: torch.sin(3 * x) * (1 - t[:, None, None, None])), x, labels, draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("w", "w_ce", "coef"), [(0, 0, 0), (1, 0, 1), (2, 0.5, 0.3)])
def test_the_gradient_is_double_backwards(dtype, w, w_ce, coef):
    """To 1e-5 in train mode; and the batch norms have counted one forward pass."""
    network, score, x, labels, draws = small_problem(dtype)
    twin = copy.deepcopy(network)
    plain = copy.deepcopy(network)
    sde = sde_lib.VESDE(0.1, 8.0)

    def objective(network):
        return losses.DLSM(network, score, sde, 1e-5, w, w_ce, coef)

    dlsm, ce = objective(network).terms(x, labels, **draws)
    (dlsm + coef * ce).backward()
    with published_layers(x.device):
        expected_dlsm, expected_ce = double_backward.dlsm(objective(twin), x, labels, **draws)
        (expected_dlsm + coef * expected_ce).backward()

    torch.testing.assert_close(dlsm, expected_dlsm, rtol=1e-5, atol=0)
    torch.testing.assert_close(ce, expected_ce, rtol=1e-5, atol=0)
    largest = max(p.grad.norm() for p in twin.parameters() if p.requires_grad)
    for (name, ours), theirs in zip(network.named_parameters(), twin.parameters()):
        if not ours.requires_grad:
            continue
        error = (ours.grad - theirs.grad).norm() / torch.maximum(theirs.grad.norm(), 1e-3 * largest)
        assert error < 1e-5, name

    with torch.no_grad():
        t = losses.draw_times(draws["u"], sde, 1e-5)
        plain(*sde_lib.perturb(sde, x, t, draws["z"]))
    for (name, ours), once in zip(network.named_buffers(), plain.buffers()):
        assert torch.equal(ours, once), name


def test_any_classifier_will_do():
    """With attention and a layer norm, against finite differences."""
    torch.manual_seed(0)
    sde, x = sde_lib.VESDE(0.1, 8.0), torch.rand(5, 1, 4, 4, device=DEVICE).double()
    labels = torch.arange(5, device=DEVICE) % 3
    draws = {"u": torch.rand(5, device=DEVICE).double(), "z": torch.randn_like(x)}

    def loss(inward, outward):
        def classifier(x, sigma):
            h = torch.tanh(x.flatten(1, 2) @ inward)
            h = F.scaled_dot_product_attention(h, h, h) + sigma[:, None, None]
            return F.layer_norm(h, (8,)).mean(1) @ outward

        return sum(losses.DLSM(classifier, lambda x, t: -x, sde, 1e-5).terms(x, labels, **draws))

    shapes = (4, 8), (8, 3)
    weights = [torch.randn(shape, device=DEVICE).double().requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(loss, weights)


def test_the_documented_loss_runs():
    """Of docs/any_model.md, by the one function; it is the objective's."""
    page = pathlib.Path(__file__).parent.parent / "docs/any_model.md"
    block = re.findall(r"```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)[2]
    classifier, score, x, labels, draws = small_problem(torch.float64)
    expected, _ = losses.DLSM(copy.deepcopy(classifier), score, VE, 1e-5)(x, labels, draws)
    t, z = losses.draw_times(draws["u"], VE, 1e-5), draws["z"]
    x_t, std = sde_lib.perturb(VE, x, t, z)
    names = dict(locals(), losses=losses, torch=torch)
    exec(block, names)
    torch.testing.assert_close(names["dlsm"] + F.cross_entropy(names["logits"], labels), expected)
    assert all(p.grad is not None for p in classifier.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["z", "t", "sigma", "labels", "score"])
def test_shapes_that_would_broadcast_are_refused(name):
    classifier, score, x, labels, draws = small_problem(torch.float64)
    values = {"x": x, "t": draws["u"], "sigma": 1 + draws["u"], "z": draws["z"], "labels": labels}
    values["score"] = score
    losses.dlsm_loss(classifier, **values)
    if name == "score":
        values["score"] = lambda x, t: x[:, :1, :1, :1]
    else:
        values[name] = values[name][:1]
    with pytest.raises(ValueError, match=name):
        losses.dlsm_loss(classifier, **values)


def test_validation_needs_no_gradients_and_counts_nothing():
    """In eval mode under no_grad the values are those of training, and no buffer changes."""
    network, score, x, labels, draws = small_problem(torch.float64)
    network.eval()
    before = copy.deepcopy(network.state_dict())
    objective = losses.DLSM(network, score, VE, 1e-5)
    expected = objective.terms(x, labels, **draws)
    with torch.no_grad():
        values = objective.terms(x, labels, **draws)
    torch.testing.assert_close(values, tuple(value.detach() for value in expected))
    assert not any(value.requires_grad for value in values)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---------------------------------------------------------------- two Gaussian classes


def test_the_exact_classifier_is_dlsms_minimum():
    """Its residual is uncorrelated with every direction, so the gradient along one vanishes."""
    torch.manual_seed(0)
    sde = sde_lib.VESDE(0.2, 5.0)
    problem = TwoGaussians(sde)

    class Tilted(torch.nn.Module):
        """The exact classifier with its logits multiplied."""

        def __init__(self, factor):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(factor))

        def forward(self, x, sigma):
            return self.factor * problem.classifier(x, sigma)

    x, labels = problem.sample(200_000)
    u, z = torch.rand(len(x)), torch.randn_like(x)
    gradients = []
    for factor in (0.5, 1.0, 2.0):
        network = Tilted(factor)
        objective = losses.DLSM(network, problem.score, sde, 1e-5, weighting_dlsm=1)
        dlsm, _ = objective.terms(x, labels, u, z)
        dlsm.backward()
        gradients.append(float(network.factor.grad))
    below, at, above = gradients
    assert below < 0 < above
    assert abs(at) < 0.1 * min(-below, above)
