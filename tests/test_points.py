"""Points in the plane through the same commands as images: sets, training, samples, NLL, Asym."""

import numpy as np
import pytest
import torch

import datasets
import losses
import models
import report
import run_lib
import run_lib_likelihood
import run_lib_sampling
import sde_lib
from configs import points
from storage.files import load_npz
from storage.workdir import Workdir


def tiny(kind, **fields):
    """A plane model that trains for a few steps."""
    config = points.plane("gaussian_8", kind)
    config.data.num_points = 64
    config.training.batch_size = 16
    config.training.n_iters = 4
    config.training.log_freq = config.training.eval_freq = 2
    config.training.snapshot_sampling = True
    config.sampling.batch_size = 20
    config.sampling.rtol = 0.1
    config.model.num_scales = 5
    config.eval.num_samples, config.eval.batch_size = 30, 20
    config.eval.num_divisions, config.eval.noise_levels = 1, 3
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


# ---------------------------------------------------------------- the sets


def load(name, split="train", **fields):
    config = points.base(name, 4000)
    config.data.update(fields)
    return datasets.load(config.data, split)


@pytest.mark.parametrize("name", ["moons", "checkerboard", "gaussian_8", "spiral_2"])
def test_a_set_is_drawn_from_its_seed(here, name):
    train, test = load(name), load(name, "test")
    assert isinstance(train.images, np.memmap)
    assert train.images.dtype == np.float32
    assert train.images.shape == test.images.shape == (4000, 2)
    assert train.classes == (2 if name == "moons" else 1)
    assert train.labels.max() == train.classes - 1
    assert not np.array_equal(train.images, test.images)
    assert not np.array_equal(train.images, load(name, data_seed=1).images)
    for path in here.glob("data/cache/*/*"):
        path.unlink()
    assert np.array_equal(train.images, load(name).images)


def test_moons_are_two_half_circles(here):
    x, labels = load("moons").images, load("moons").labels
    assert np.abs(x.mean(0)).max() < 1e-3
    for label, turn in ((0, 1), (1, -1)):
        centre = np.array([-0.5, -0.25]) if label == 0 else np.array([0.5, 0.25])
        offset = x[labels == label] - 20 * centre
        np.testing.assert_allclose(np.linalg.norm(offset, axis=1), 20, rtol=1e-3)
        assert (turn * offset[:, 1]).min() > -1e-2


def test_checkerboard_has_eight_squares(here):
    x = load("checkerboard").images / 3
    row, column = np.floor(x[:, 1]).astype(int), np.floor(x[:, 0]).astype(int)
    assert set((row + column) % 2) == {0}
    squares, counts = np.unique(np.stack([row, column]), axis=1, return_counts=True)
    assert squares.shape[1] == 8
    assert counts.min() > 400  # of 500, five standard deviations below


def test_eight_gaussians_stand_on_a_circle(here):
    x = load("gaussian_8").images
    angle = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)) * np.pi / 4
    offset = x - 8 / 2**0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert np.std(offset) == pytest.approx(0.5**0.5, rel=0.05)
    assert np.linalg.norm(x, axis=1).mean() == pytest.approx(5.66, rel=0.03)


def test_spirals_turn_three_halves(here):
    x = load("spiral_2").images * 3 / 2.3
    assert np.abs(x[::2].mean(0) + x[1::2].mean(0)).max() < 0.5
    assert np.linalg.norm(x[::2].mean(0)) > 1
    assert np.linalg.norm(x, axis=1).max() < 3 * np.pi + 1


# ---------------------------------------------------------------- the networks


def test_networks_have_the_papers_sizes():
    config = points.plane("checkerboard", "usbm")
    assert count(models.create_model(config)) == 42509
    config.model.name = "moons"
    assert count(models.create_model(config)) == 44818


def count(network):
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------- the commands


@pytest.mark.parametrize("kind", ["usbm", pytest.param("qcsbm", marks=pytest.mark.slow), "csbm"])
def test_points_go_all_the_way(here, kind, capsys):
    config = tiny(kind)
    run_lib.train(config, "run")
    place = Workdir("run")
    assert (place.snapshot_samples(4) / "sample.png").exists()
    assert np.load(place.snapshot_samples(4) / "sample.np").shape == (20, 2)
    assert "Training on 64 points of gaussian_8" in place.log_file.read_text()

    run_lib_sampling.sample(config, "run")
    drawn = load_npz(place.division(0, "_ode") / "samples_1.npz", "samples", "nfe")
    assert (drawn["samples"].dtype, drawn["samples"].shape) == (np.float32, (10, 2))
    assert (place.division(0, "_ode") / "samples_1.png").exists()

    run_lib_likelihood.calculate_nll(config, "run")
    result = run_lib_likelihood.read_nll("run")
    assert np.isfinite(result["nats"])
    assert "nats over 64 points" in capsys.readouterr().out
    config.loss.estimator = "skew"
    run_lib_likelihood.calculate_asym(config, "run")
    asym = run_lib_likelihood.read_asym("run")
    assert asym["asym"] >= 0
    assert (asym["nasym"] < 1e-6) == (kind == "csbm")

    report.report(["run"])
    assert "eval_sampling_ode" in (place.root / "report.html").read_text()


# ---------------------------------------------------------------- the exact regulariser


def test_the_exact_regulariser_is_the_asymmetry_and_its_gradient():
    """r = σ²·½‖J − Jᵀ‖² with J by autograd, and the gradient that autograd gives it."""
    config = points.plane("checkerboard", "qcsbm")
    torch.manual_seed(0)
    network = models.create_model(config).double()
    sde = sde_lib.from_config(config)
    score = models.create_score(config, network, sde)
    objective = losses.score_objective(config, score, sde)
    x = torch.randn(6, 2, dtype=torch.float64)
    draws = objective.draw(x)
    loss, values = objective(x, None, draws)
    loss.backward()
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()

    t = losses.draw_times(draws["u"], sde, config.training.eps)
    x_t, std = losses.perturb(sde, x, t, draws["z"])

    def one(x, t):
        return score(x[None], t[None])[0]

    J = torch.func.vmap(torch.func.jacrev(one))(x_t, t)
    asymmetry = 0.5 * (J - J.mT).square().sum((1, 2))
    residual = score(x_t, t) * std[:, None] + draws["z"]
    dsm = 0.5 * residual.square().sum(1)
    total = (dsm + 0.05 * std**2 * asymmetry).mean()
    total.backward()
    assert loss.item() == float(values["loss"]) == pytest.approx(total.item(), rel=1e-9)
    for gradient, parameter in zip(found, network.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-7, atol=1e-10)
