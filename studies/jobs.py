"""The jobs that `studies.launches`, `studies.gpu` and `studies.speed` measure.

An update of each objective, and an evaluation of a frozen score, with the CIFAR-10 networks of
published size or small ones.
"""

import dataclasses
import functools
import pathlib
import platform
import re
import sys

import torch

import domains
import losses
import models
import sde_lib
from configs import common
from models.compute import freeze, prepare
from models.scores import Score
from storage.ema import EMA

# The reference computations are those of the tests.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
from oracles import double_backward

FP32 = {"precision": "fp32", "channels_last": False, "compile": False}
EAGER = {"precision": "bf16", "channels_last": True, "compile": False}
COMPILED = dict(EAGER, compile=True)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Sizes, networks and data on one device.

    Attributes:
        config: of a score model and, in `classifier`, of a classifier.
        batch: images of a step.
    """

    device: torch.device
    config: object
    batch: int

    def draw(self):
        """Images (B, C, H, W), labels (B,)."""
        torch.manual_seed(1)
        shape = (self.batch, *domains.from_config(self.config.data).shape)
        labels = torch.randint(self.config.classifier.classes, (self.batch,), device=self.device)
        return torch.rand(shape, device=self.device), labels

    @property
    def sde(self):
        return sde_lib.from_config(self.config)

    def network(self, create, way, ready=prepare):
        """A network of `models` with the same weights whatever the `way`, of ``config.compute``."""
        torch.manual_seed(0)
        settings = type(self.config)({**self.config.compute, **way})
        return ready(create(self.config), settings, self.device)

    def score(self, way, ready=freeze):
        return Score(self.network(models.create_model, way, ready), self.sde)


def published(device, batch=128):
    """The published CIFAR-10 networks, NCSN++ and ResNet-18."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
    return Bench(device, config, batch)


def small(device, batch=16):
    """A score network that takes a second per step on two CPU cores; the published classifier."""
    bench = published(device, batch)
    bench.config.model.nf = 64
    bench.config.model.ch_mult = (1, 2, 2)
    bench.config.model.num_res_blocks = 1
    return bench


def tiny(device, batch=4):
    """Tiny networks for a CPU, on 8×8 images; their times are not meaningful."""
    bench = published(device, batch)
    config = bench.config
    config.data.image_size, config.classifier.model = 8, "resnet_small_cond"
    config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 8, (1, 1), 1
    config.model.attn_resolutions = (4,)
    return bench


# ---------------------------------------------------------------- jobs


def dsm(bench, way):
    """The network that is trained, and its objective."""
    score = bench.score(way, prepare)
    return score.net, losses.DSM(score, bench.sde, 1e-5)


def qc(bench, way):
    """As `dsm`, with one slice."""
    score = bench.score(way, functools.partial(prepare, tangents=True))
    return score.net, losses.QuasiConservative(score, bench.sde, 1e-5, balancing_fac=1e-4)


def dlsm(bench, way):
    """As `dsm`, of a classifier."""
    classifier = bench.network(models.create_classifier, way)
    return classifier, losses.DLSM(classifier, bench.score(way), bench.sde, 1e-5)


OBJECTIVES = {"DSM step": dsm, "QC step": qc, "DLSM step": dlsm}


def published_dsm(objective, x, labels, draws):
    return objective(x, labels, draws)[0]


def published_qc(objective, x, labels, draws):
    return double_backward.quasi_conservative(objective, x, **draws)


def published_dlsm(objective, x, labels, draws):
    return sum(double_backward.dlsm(objective, x, labels, **draws))


PUBLISHED = {"DSM step": published_dsm, "QC step": published_qc, "DLSM step": published_dlsm}
"""Name -> the loss of one of `OBJECTIVES` by double backward."""


def step(objective_of, bench, way):
    """A call that makes one update of one of `OBJECTIVES`: its gradient, Adam, the averages."""
    network, objective = objective_of(bench, way)
    x, labels = bench.draw()
    config = bench.config
    parameters = [p for p in network.train().parameters() if p.requires_grad]
    ema = EMA(parameters, config.model.ema_rate)
    optimizer = losses.make_optimizer(parameters, config.optim)

    def call():
        optimizer.zero_grad(set_to_none=True)
        objective(x, labels, objective.draw(x))[0].backward()
        losses.optimize(optimizer, parameters, 1, config.optim)
        ema.update()

    return call


def evaluation(bench, way):
    """A call that evaluates a frozen score."""
    score = bench.score(way)
    x, _ = bench.draw()
    t = torch.linspace(0.1, 0.9, len(x), device=bench.device)

    @torch.no_grad()
    def call():
        return score(x, t)

    return call


def machine(device):
    """The hardware and the versions, as text."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    words = [f"{cpu[1] if cpu else platform.machine()}, {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    words += [f"PyTorch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join(words)
