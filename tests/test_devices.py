"""On a GPU nothing is left on the CPU, and no step of training or sampling waits for the GPU.

PyTorch's fake tensors have a device and no numbers: what mixes devices fails, and so does what asks
for a number, for which the host would wait. The device is ``meta``, which needs no driver.
"""

import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import distributed
import likelihood
import losses
import models
import run_lib
import sampling
import sde_lib
from configs import common
from models import jacobian, resampling
from models.cas import create_cas_classifier
from models.scores import GuidedScore
from storage.checkpoints import TrainState
from storage.ema import EMA
from training import classifier
from training.cas import CASObjective
from training.score import ScoreTraining

pytestmark = pytest.mark.slow
DEVICE = torch.device("meta")


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def move(module, device=None, memory_format=torch.preserve_format):
    """`torch.nn.Module.to`; PyTorch's cannot exchange the data of fake tensors."""
    for each in module.modules():
        for name, value in each._parameters.items():
            if value is not None:
                moved = value.detach().to(device or value.device)
                each._parameters[name] = torch.nn.Parameter(moved, value.requires_grad)
        for name, value in each._buffers.items():
            each._buffers[name] = value if value is None else value.to(device or value.device)
    return module


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.nn.Module, "to", move)
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *args: None
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: False)
    monkeypatch.setattr(torch.ops.aten, "batch_norm_update_stats", statistics)
    monkeypatch.setattr(run_lib, "seed_default_generators", lambda *args: None)
    resampling.fir_matrices.cache_clear()
    with FakeTensorMode():
        yield
    resampling.fir_matrices.cache_clear()


def statistics(x, *options):
    """`torch.ops.aten.batch_norm_update_stats`, which the device lacks."""
    return x.mean((0, 2, 3)), x.var((0, 2, 3))


def small(config):
    config.model.update(nf=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,))
    config.model.num_scales = 3
    config.data.image_size = 8
    config.training.batch_size = 4
    return config


class Batches:
    position = 0

    def __next__(self):
        return torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)


def train(job):
    """Make two steps of a job."""
    parameters = list(job.model.parameters())
    optimizer = losses.make_optimizer(parameters, job.config.optim)
    state = TrainState(job.model, EMA(parameters, 0.9), optimizer)
    for _ in range(2):
        values = run_lib.training_step(state, job, Batches(), distributed.World(job.objective))
        assert {value.device for value in values.values()} == {DEVICE}


def draw(job, score):
    noise = sampling.SeededNoise(DEVICE, "samples")
    x, _ = job.sampler(score, noise.randn((2, 3, 8, 8)), noise.randn_like)
    assert x.device == DEVICE
    return x, noise


@pytest.mark.parametrize(
    ("kind", "microbatch"), [("u_ncsn", None), ("u_ncsn", 2), ("c_ncsn", None), ("qc_ncsn", None)]
)
def test_score_models(kind, microbatch):
    config = small(common.qc(kind, common.CIFAR10))
    config.training.microbatch, config.compute.channels_last = microbatch, bool(microbatch)
    job = ScoreTraining(config, DEVICE)
    train(job)
    x, noise = draw(job, job.score)
    t, v = torch.ones(2, device=DEVICE), jacobian.rademacher(noise.randn((2, *x.shape)))
    estimator = jacobian.ESTIMATORS["paper"]
    z = noise.randn(x.shape)
    for value in likelihood.asymmetry(job.score, job.sde, x, t, z, v, estimator, 1):
        assert value.device == DEVICE


def test_classifiers(monkeypatch):
    """DLSM training against a score, guided samples, and the classifier of CAS."""
    config = small(common.dlsm_classifier(common.CIFAR10, "resnet18_cond"))
    sde, network = sde_lib.from_config(config), models.create_model(config)
    score = models.create_score(config, models.compute.freeze(network, config.compute, DEVICE), sde)
    trained = types.SimpleNamespace(score=score, sde=sde, config=config)
    monkeypatch.setattr(classifier, "load_score", lambda *args: trained)
    job = classifier.ClassifierTraining(config, DEVICE)
    train(job)
    draw(job, GuidedScore(score, job.model.eval(), sde, torch.ones(1, dtype=int, device=DEVICE), 1))
    job.model = create_cas_classifier(common.dlsm_cas(common.CIFAR10, "resnet18_cond"), 10)
    job.objective = CASObjective(job.model.to(DEVICE))
    train(job)
