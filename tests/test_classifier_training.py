"""Classifier training by the shared loop: files, warm-up, continuation, and what does not fit."""

import shutil

import numpy as np
import pytest
import tiny
import tiny_classifier
import torch

import losses
from configs import common
from storage import checkpoints
from storage.workdir import Workdir
from training.classifier import ClassifierTraining
from utils import UserError


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A directory with a trained score model, results/score, and the data cache."""
    here = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        tiny_classifier.train_score(here / "cache")
    return here


@pytest.fixture
def cache(start, monkeypatch):
    """The data cache; the working directory holds the score model and nothing else."""
    monkeypatch.chdir(start)
    yield start / "cache"
    for path in (start / "results").iterdir():
        if path.name != "score":
            shutil.rmtree(path)


@pytest.mark.parametrize("loss_type", ["total", "dlsm", "ce"])
def test_a_run_writes_its_files(cache, loss_type):
    more = {"model__loss_type": loss_type, "training__snapshot_sampling": True}
    job = tiny_classifier.train(cache, "run", sampling__batch_size=20, **more)
    root = Workdir("run").root
    tiny.check_files_of_a_run(root)
    content = tiny.newest("run")
    assert content["step"] == 8
    assert all(name.startswith("classifier.") for name in content["model"])
    # Every step has counted the batch's statistics once.
    assert int(content["model"]["classifier.classifier.bn1.num_batches_tracked"]) == 8
    # The last weights are the ones that are used.
    trained = [p for p in job.model.parameters() if p.requires_grad]
    for parameter, shadow in zip(trained, content["ema"]["shadow_params"], strict=True):
        assert torch.equal(parameter.detach(), shadow)
    images = np.load(root / "samples/iter_8/sample.np")
    assert images.shape == (20, 8, 8, 1)
    text = (root / "stdout.txt").read_text()
    assert "accuracy" in text
    assert ("dlsm" in text) == (loss_type != "ce")


def test_the_score_model_is_frozen_and_averaged(cache):
    """Its averaged weights, in eval mode, are the same after training."""
    device = torch.device("cpu")
    config = tiny_classifier.config("classifier", cache)
    job = ClassifierTraining(config, device)
    network = job.score.net
    shadow = checkpoints.read(Workdir("score").checkpoint())["ema"]["shadow_params"]
    parameters = [p for n, p in network.named_parameters() if n != "all_modules.0.W"]
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    for parameter, average in zip(parameters, shadow, strict=True):
        assert torch.equal(parameter, average)
    before = checkpoints.fingerprint(network.parameters())
    job.model.train()
    x = torch.rand(8, 1, 8, 8)
    loss, _ = job.objective(x, torch.randint(10, (8,)), job.objective.draw(x))
    loss.backward()
    assert checkpoints.fingerprint(network.parameters()) == before
    assert all(p.grad is None for p in network.parameters())
    assert not network.training


def test_with_warm_up_the_rate_rises(cache, monkeypatch):
    """The published classifier training never counted its steps, so the rate stayed 0."""
    assert common.dlsm_classifier(common.CIFAR100, "resnet34_cond").optim.warmup == 1000
    rates, optimize = [], losses.optimize

    def spy(optimizer, *arguments):
        norm = optimize(optimizer, *arguments)
        rates.append(optimizer.param_groups[0]["lr"])
        return norm

    monkeypatch.setattr(losses, "optimize", spy)
    tiny_classifier.train(cache, "run", optim__warmup=1000, optim__lr=0.5)
    assert rates == pytest.approx([0.5 * step / 1000 for step in range(8)])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"classifier__classes": 9}, "config.classifier.classes"),
        ({"model__score_restore_path": "none.pth"}, "none.pth"),
        ({"model__loss_type": "kl"}, "config.model.loss_type"),
        ({"classifier__model": "vgg"}, "config.classifier.model"),
    ],
)
def test_mistakes_get_a_sentence(cache, more, said):
    with pytest.raises(UserError, match=said):
        tiny_classifier.train(cache, "run", **more)
    assert not Workdir("run").root.exists()
