"""What the published commands keep in memory, by fake tensors: no GPU is asked, no memory taken.

python -m benchmarks.memory [--only NAME …]

Prints the Markdown table of docs/performance.md. Of every command the largest part is counted: one
update's gradient, or one pass of an evaluation. `memory` says what is not seen.
"""

import argparse
import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torchvision.models import Inception3

import likelihood
import losses
import models
import run_lib_cas
import sde_lib
from configs import common
from metrics import extractors
from models import cas, compute, jacobian, memory
from models.memory import GIB, MIB
from models.scores import EnergyScore, GuidedScore, Score

CPU = torch.device("cpu")
SDE = sde_lib.VESDE()
PRECISIONS = ("fp32", "bf16")
CARDS = (24, 40, 80)  # GB, of 10⁹ bytes: that leaves some per cent for what is not counted
SIZES = (32, 64)  # of the batches that are counted: above them the memory is linear


@dataclasses.dataclass(frozen=True)
class Use:
    """A published command's call of a network.

    Attributes:
        images: how many images it takes at a time by default.
        call: function of a number of images, what is counted.
        trained: the network whose gradients are taken; None: in an evaluation.
    """

    images: int
    call: Callable
    trained: torch.nn.Module | None = None


# ---------------------------------------------------------------- networks


def computed(network, precision):
    config = common.base(common.CIFAR10)
    return compute.prepare(network, dict_with(config.compute, precision=precision), CPU)


def dict_with(config, **values):
    config = config.copy_and_resolve_references()
    config.update(values)
    return config


@functools.cache
def ncsnpp(precision, trained):
    """The published NCSN++ of CIFAR-10."""
    network = computed(models.create_model(common.base(common.CIFAR10)), precision)
    return network.train() if trained else network.eval().requires_grad_(False)


def classifier(precision, trained):
    config = common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
    network = computed(models.create_classifier(config), precision)
    return network.train() if trained else network.eval().requires_grad_(False)


@functools.cache
def inception():
    """The FID Inception network, with other weights."""
    with tempfile.NamedTemporaryFile() as file:
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        torch.save(network.state_dict(), file.name)
        return extractors.InceptionFeatures(CPU, file.name, trust_weights=True).network


def pixels(images):
    return torch.rand(images, 3, 32, 32)


def times(images):
    return torch.rand(images)


# ---------------------------------------------------------------- training


def training(network, objective, batch):
    parameters = [p for p in network.parameters() if p.requires_grad]

    def gradient(images):
        x, labels = pixels(images), torch.zeros(images, dtype=torch.long)
        loss, _ = objective(x, labels, objective.draw(x))
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return Use(batch, gradient, network)


def dsm(precision):
    network = ncsnpp(precision, trained=True)
    return training(network, losses.DSM(Score(network, SDE), SDE, 1e-5), 128)


def quasi_conservative(precision, slices, batch):
    network = ncsnpp(precision, trained=True)
    objective = losses.QuasiConservative(
        Score(network, SDE), SDE, 1e-5, balancing_fac=1e-4, slices=slices
    )
    return training(network, objective, batch)


def constrained(precision):
    network = ncsnpp(precision, trained=True)
    return training(network, losses.EnergyDSM(EnergyScore(network, SDE), SDE, 1e-5), 128)


def dlsm(precision):
    network = classifier(precision, trained=True)
    score = Score(ncsnpp(precision, trained=False), SDE)
    return training(network, losses.DLSM(network, score, SDE, 1e-5), 150)


def accuracy_score(precision):
    config = common.dlsm_cas(common.CIFAR10, "resnet18_cond")
    network = computed(cas.create_cas_classifier(config, 10), precision)
    return training(network.train(), run_lib_cas.CrossEntropy(network), 150)


# ---------------------------------------------------------------- evaluation

ROWS = common.base(common.CIFAR10).eval.microbatch


def evaluation(call, images=ROWS):
    return Use(images, torch.no_grad()(call))


def sampling(precision, kind):
    score = kind(ncsnpp(precision, trained=False), SDE)
    return evaluation(lambda images: score(pixels(images), times(images)))


def guided(precision):
    score = Score(ncsnpp(precision, trained=False), SDE)
    label = torch.zeros(1, dtype=torch.long)
    composed = GuidedScore(score, classifier(precision, trained=False), SDE, label)
    return evaluation(lambda images: composed(pixels(images), times(images)), 100)


def nll(precision, kind):
    score = kind(ncsnpp(precision, trained=False), SDE)

    def derivatives(images):
        x = pixels(images)
        return likelihood.DensityField(SDE, score, x[None]).derivatives(
            x, times(images), x[:, None]
        )

    return evaluation(derivatives)


def asymmetry(precision, kind):
    score = kind(ncsnpp(precision, trained=False), SDE)

    def one_slice(images):
        x = pixels(images)
        return likelihood.asymmetry(
            score, SDE, x, times(images), x, x[None], jacobian.paper_asymmetry
        )

    return evaluation(one_slice, ROWS // 2)


def encoding(precision):
    network = inception()
    return evaluation(lambda images: network(pixels(images).to(torch.uint8)))


USES = {
    "DSM training (DLSM, U)": dsm,
    "QC training, 1 slice": functools.partial(quasi_conservative, slices=1, batch=128),
    "QC training, 16 slices, `--bs 8`": functools.partial(quasi_conservative, slices=16, batch=8),
    "C training": constrained,
    "classifier training (DLSM)": dlsm,
    "CAS training": accuracy_score,
    "sampling, PC and ODE": functools.partial(sampling, kind=Score),
    "sampling, C": functools.partial(sampling, kind=EnergyScore),
    "class-guided sampling": guided,
    "NLL": functools.partial(nll, kind=Score),
    "NLL, C": functools.partial(nll, kind=EnergyScore),
    "asymmetry": functools.partial(asymmetry, kind=Score),
    "asymmetry, C": functools.partial(asymmetry, kind=EnergyScore),
    "encoding (Inception)": encoding,
}


# ---------------------------------------------------------------- the table


@contextlib.contextmanager
def as_on_a_gpu():
    """Within the context autocast on the CPU has group norms in float32, as CUDA's has."""
    group_norm = F.group_norm

    def in_float32(x, *args, **kwargs):
        x = x.float() if torch.is_autocast_enabled("cpu") else x
        return group_norm(x, *args, **kwargs)

    with mock.patch.object(F, "group_norm", in_float32):
        yield


def measure(use):
    """The `memory.Step` of a use."""
    with as_on_a_gpu():
        few, many = (memory.count(functools.partial(use.call, size)) for size in SIZES)
    per_image = (many.peak - few.peak) / (SIZES[1] - SIZES[0])
    fixed = many.held + max(0, many.peak - SIZES[1] * per_image)
    if use.trained is not None:
        weights = sum(p.numel() for p in use.trained.parameters() if p.requires_grad)
        fixed += 4 * 4 * weights  # gradients, averages and Adam's two moments
    return memory.Step(fixed, per_image, use.images)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="parts of the names")
    only = parser.parse_args().only
    cards = " | ".join(f"{card} GB" for card in CARDS)
    print(
        "| | images at a time | fixed, GiB | an image, MiB | together, GiB | "
        f"most images in {cards} |"
    )
    print("|---|---|---|---|---|" + "---|" * len(CARDS))
    for name, build in USES.items():
        if only and not any(text in name for text in only):
            continue
        steps = []
        for precision in PRECISIONS:
            use = build(precision)
            steps.append(measure(use))
        columns = [
            [f"{step.fixed / GIB:.2f}" for step in steps],
            [f"{step.per_image / MIB:.0f}" for step in steps],
            [f"{step.total / GIB:.1f}" for step in steps],
            *([str(step.images_within(card * 1e9)) for step in steps] for card in CARDS),
        ]
        cells = " | ".join(" / ".join(cell) for cell in columns)
        print(f"| {name} | {use.images} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
