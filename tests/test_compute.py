"""config.compute: compiled and eager training agree, bfloat16 is near, mistakes get sentences."""

import pytest
import tiny
import tiny_classifier
import torch

import datasets
import distributed
import losses
import models
import run_lib
import sde_lib
from models import compute
from models.ema import EMA
from models.jacobian import vjp
from models.scores import EnergyScore
from storage import checkpoints
from storage.provenance import config_hash
from training.classifier import ClassifierTraining
from training.safeguards import StopRequest
from utils import UserError

CPU = torch.device("cpu")


def ten_losses(make_job, config):
    """The losses of the first ten training steps."""
    torch.manual_seed(0)
    job = make_job(config, CPU)
    parameters = list(job.model.parameters())
    optimizer = losses.make_optimizer(parameters, config.optim)
    state = checkpoints.TrainState(job.model, EMA(parameters, 0.9), optimizer)
    batches = datasets.TrainBatches(job.splits()[0], config.training.batch_size, config.seed)
    world = distributed.World(job.objective)
    values = [
        run_lib.training_step(state, job, batches, config, world, StopRequest()) for _ in range(10)
    ]
    return torch.tensor([float(value["loss"]) for value in values])


@pytest.mark.parametrize("slices", [0, 2])
def test_compiled_training_is_eager_training(tmp_path, slices):
    """DSM, and QC with dropout and two slices, whose Jᵀv are those of copies of the images."""
    fields = {"loss__balancing_fac": 0.01, "loss__slices": slices} if slices else {}
    eager, compiled = (
        ten_losses(run_lib.ScoreTraining, tiny.config(tmp_path, compute__compile=on, **fields))
        for on in (False, True)
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=0)


def test_a_compiled_classifier_is_the_eager_one(tmp_path, monkeypatch):
    """DLSM against a score model that is compiled too."""
    monkeypatch.chdir(tmp_path)
    tiny_classifier.train_score(tmp_path / "cache")
    eager, compiled = (
        ten_losses(
            ClassifierTraining,
            tiny_classifier.config("classifier", tmp_path / "cache", compute__compile=on),
        )
        for on in (False, True)
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=0)


def outputs(config, x, cond, directions):
    """What a network gives that computes as ``config.compute`` says."""
    torch.manual_seed(0)
    network = models.create_model(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
        return compute.prepare(network, config.compute, CPU)(x, cond, directions)


def test_every_way_to_compute_gives_the_same_output():
    x, cond = torch.rand(3, 1, 8, 8), torch.tensor([0.05, 0.5, 5.0])
    directions = torch.randn(2, *x.shape)
    fields = {"model__attn_resolutions": (8,), "model__ch_mult": (1, 2)}

    def output(**more):
        return outputs(tiny.config("cache", **fields, **more), x, cond, directions)

    exact = output()
    for more in ({"compute__channels_last": True}, {"compute__compile": True}):
        for ours, expected in zip(output(**more), exact):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    for ours, expected in zip(output(compute__precision="bf16"), exact):
        assert ours.dtype == torch.float32
        assert 0 < (ours - expected).norm() / expected.norm() < 0.03


def test_an_unknown_precision_gets_a_sentence():
    config = tiny.config("cache", compute__precision="fp8")
    with pytest.raises(UserError, match=r"config\.compute\.precision.*fp8"):
        compute.prepare(models.create_model(config), config.compute, CPU)


def test_results_of_another_precision_are_others():
    known = config_hash(tiny.config("cache"))
    assert config_hash(tiny.config("cache", compute__compile=True)) == known
    assert config_hash(tiny.config("cache", compute__channels_last=True)) == known
    assert config_hash(tiny.config("cache", compute__precision="bf16")) != known


def test_training_continues_in_another_memory_format(tmp_path, monkeypatch):
    """Adam's moments of a channels-last run serve one that is not, and the other way round."""
    monkeypatch.chdir(tmp_path)
    kept = {}
    for first, second in ((False, False), (False, True), (True, False)):
        name = f"run-{first}-{second}"
        for last, steps in ((first, 3), (second, 6)):
            config = tiny.config(
                "cache", compute__channels_last=last, training__n_iters=steps, optim__warmup=0
            )
            kept[name] = run_lib.train(config, name).model.state_dict()
    expected, *others = kept.values()
    for other in others:
        for name, value in expected.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


def test_a_compiled_constrained_model_has_the_same_products():
    config = tiny.config("cache", model__energy=True)
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.3, 0.7])
    v = torch.randn(2, *x.shape)
    products = []
    for on in (False, True):
        config.compute.compile = on
        torch.manual_seed(0)
        network = compute.prepare(models.create_model(config), config.compute, CPU).eval()
        score = EnergyScore(network, sde_lib.from_config(config))
        products.append((*score.jvp(x, t, v), vjp(score, x, t, v)))
    for ours, expected in zip(products[1], products[0]):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
