"""What training, sampling and evaluation cost here, beside the way the published code took.

python -m benchmarks.speed [--device cpu|cuda] [--size small|published] [--only JOB …]
    [--ways WAY …] [--images N]

Prints the machine and a Markdown table. Both sides of a row run in this process: the baseline in
float32, channels first, not compiled, with convolutions for resampling, create_graph double
backward, loops over parameters, two forward passes for a likelihood, SciPy on the host and
per-image decoding; ours as the row says. How times and memory are taken: `measuring`.
"""

import argparse
import atexit
import dataclasses
import functools
import shutil
import tempfile

import numpy as np
import scipy.linalg
import torch
from oracles import double_backward, published_way

import datasets
import domains
import likelihood
import losses
import models
import sampling
import sde_lib
from benchmarks.measuring import Meter, ceilings, machine
from benchmarks.parity_metrics import real_and_fake
from configs import common
from metrics import frechet, prdc
from models import jacobian
from models.compute import freeze, prepare
from models.ema import EMA
from models.scores import Score
from readers.tfds import tensorflow_stand_in

# The ways to compute that are tried, as fields of `config.compute`.
BASELINE = {"precision": "fp32", "channels_last": False, "compile": False}
WAYS = {
    "cpu": {
        "fp32": BASELINE,
        "bf16": dict(BASELINE, precision="bf16"),
        "bf16 compiled": dict(BASELINE, precision="bf16", compile=True),
    },
    "cuda": {
        "fp32": BASELINE,
        "tf32 compiled": {"precision": "tf32", "channels_last": True, "compile": True},
        "bf16": {"precision": "bf16", "channels_last": True, "compile": False},
        "bf16 compiled": {"precision": "bf16", "channels_last": True, "compile": True},
        "bf16 compiled, channels first": dict(BASELINE, precision="bf16", compile=True),
    },
}


# ---------------------------------------------------------------- networks


@dataclasses.dataclass(frozen=True)
class Bench:
    """Sizes, networks and data on one device.

    Attributes:
        config: of a score model and, in `classifier`, of a classifier.
        batch, slices: images of a step, and the QC regulariser's random vectors for each.
        pc_steps: steps of the PC sampler.
        side: of the matrices whose products are timed; None: the device's own.
    """

    device: torch.device
    config: object
    batch: int
    slices: int
    pc_steps: int
    side: int | None = None

    @property
    def ways(self):
        return WAYS[self.device.type]

    def draw(self):
        """Images (B, C, H, W), labels (B,)."""
        torch.manual_seed(1)
        data = self.config.data
        shape = (self.batch, *domains.from_config(data).shape)
        labels = torch.randint(self.config.classifier.classes, (self.batch,), device=self.device)
        return torch.rand(shape, device=self.device), labels

    @property
    def sde(self):
        return sde_lib.from_config(self.config)

    def network(self, create, way, ready=prepare):
        """A network of `models` with the same weights whatever the way to compute."""
        torch.manual_seed(0)
        settings = self.config.copy_and_resolve_references().compute
        settings.update(way)
        return ready(create(self.config), settings, self.device)

    def score(self, way, train=True):
        network = self.network(models.create_model, way, prepare if train else freeze)
        return Score(network, self.sde)


def small(device):
    """A score network that two CPU cores train in a second a step; the published classifier."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
    config.model.nf = 64
    config.model.ch_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    return Bench(device, config, batch=16, slices=1, pc_steps=4)


def published(device):
    """The published CIFAR-10 networks and batch."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
    return Bench(device, config, batch=128, slices=1, pc_steps=10)


def tiny(device):
    """Seconds on a CPU, to see that everything runs; its numbers mean nothing."""
    config = common.dlsm_classifier(common.CIFAR10, "resnet_small_cond")
    config.data.image_size = 8
    config.model.nf = 8
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (4,)
    return Bench(device, config, batch=4, slices=1, pc_steps=2, side=64)


SIZES = {"small": small, "published": published, "tiny": tiny}


# ---------------------------------------------------------------- the jobs


def training_step(network, config, gradient, baseline):
    """A whole update: ``gradient()`` has the gradients added up, the rest is the optimiser's."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    ema = EMA(parameters, config.model.ema_rate)
    if baseline:
        optimizer = torch.optim.Adam(parameters, lr=config.optim.lr, foreach=False)
    else:
        optimizer = losses.make_optimizer(parameters, config.optim)

    def average():
        with torch.no_grad():
            for shadow, parameter in zip(ema.shadow, parameters):
                shadow.sub_((1 - config.model.ema_rate) * (shadow - parameter))

    def step():
        optimizer.zero_grad(set_to_none=True)
        gradient()
        losses.optimize(optimizer, parameters, 1, config.optim)
        average() if baseline else ema.update()

    return step


def backward(objective, x, labels):
    """A call that adds up an objective's gradients, of new draws."""

    def call():
        objective(x, labels, objective.draw(x))[0].backward()

    return call


def dsm(bench, way, baseline):
    x, labels = bench.draw()
    score = bench.score(way)
    objective = losses.DSM(score, bench.sde, 1e-5)
    return training_step(score.net, bench.config, backward(objective, x, labels), baseline)


def qc(bench, way, baseline):
    x, labels = bench.draw()
    score = bench.score(way)
    objective = losses.QuasiConservative(
        score, bench.sde, 1e-5, balancing_fac=1e-4, slices=bench.slices
    )

    def twice():
        double_backward.quasi_conservative(objective, x, **objective.draw(x)).backward()

    gradient = twice if baseline else backward(objective, x, labels)
    return training_step(score.net, bench.config, gradient, baseline)


def dlsm(bench, way, baseline):
    x, labels = bench.draw()
    classifier = bench.network(models.create_classifier, way)
    objective = losses.DLSM(classifier, bench.score(way, train=False), bench.sde, 1e-5)

    def twice():
        terms = double_backward.dlsm(objective, x, labels, **objective.draw(x))
        sum(terms).backward()

    gradient = twice if baseline else backward(objective, x, labels)
    return training_step(classifier, bench.config, gradient, baseline)


def pc_sampling(bench, way, baseline):
    """Both sides take the same steps."""
    sde = dataclasses.replace(bench.sde, N=bench.pc_steps)
    score = bench.score(way, train=False)
    sampler = sampling.from_config(bench.config.sampling, sde)
    x, _ = bench.draw()
    return lambda: sampler(score, torch.randn_like(x))


def nll(bench, way, baseline):
    score = bench.score(way, train=False)
    x = bench.draw()[0][: bench.batch // 4]
    epsilon = jacobian.rademacher(torch.randn_like(x))
    tolerances = {"rtol": 1e-3, "atol": 1e-5}
    if baseline:
        return lambda: published_way.bits_ode(bench.sde, score, x, epsilon, **tolerances)
    return lambda: likelihood.log_likelihood(score, bench.sde, x, epsilon[None], **tolerances)


NETWORK_JOBS = {
    "DSM step": dsm,
    "QC step": qc,
    "DLSM step": dlsm,
    "PC sampling": pc_sampling,
    "NLL": nll,
}


def precision_and_its_kin(device):
    real, fake = real_and_fake(10_000, 10_000, 2048)
    return (
        lambda: prdc.prdc_package(real, fake),
        lambda: prdc.precision_recall_density_coverage(real, fake, device=device),
    )


def fid(device):
    real, fake = real_and_fake(10_000, 10_000, 2048)

    def published():
        covariances = [np.cov(x, rowvar=False, dtype=np.float64) for x in (real, fake)]
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
        difference = real.mean(0, dtype=np.float64) - fake.mean(0, dtype=np.float64)
        return difference @ difference + sum(map(np.trace, covariances)) - 2 * np.trace(root.real)

    return published, lambda: frechet.frechet_distance(real, fake)


def batches(device):
    """50 training batches of 128 CIFAR-10-like images in the model's range, on the device."""
    count, size = 50, 128
    folder = tempfile.mkdtemp(prefix="batches-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    images = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8)
    source = as_data_source(images, folder)
    domain = domains.from_config(common.base(common.CIFAR10).data)
    split = datasets.Split(images.transpose(0, 3, 1, 2).copy(), np.zeros(5000, np.int64), 10)
    drawn = datasets.TrainBatches(split, size, 0)
    rng = np.random.default_rng(0)

    def ours():
        for _ in range(count):
            domain.to_model(next(drawn)[0].to(device), train=True)

    def published():
        for _ in range(count):
            chosen = [source[int(i)]["image"] for i in rng.integers(5000, size=size)]
            flipped = [x[:, ::-1] if rng.random() < 0.5 else x for x in chosen]
            x = np.stack(flipped).astype(np.float32) / 255
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(device)

    return published, ours


def as_data_source(images, folder):
    """uint8 images (N, H, W, C) as tfds keeps CIFAR-10: PNG files in an array_record."""
    import tensorflow_datasets as tfds

    class Images(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=images.shape[1:], encoding_format="png")}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, image in enumerate(images):
                yield number, {"image": image}

    builder = Images(data_dir=folder, file_format="array_record")
    with tensorflow_stand_in():
        builder.download_and_prepare()
    return builder.as_data_source("train")


HOST_JOBS = {
    "P/R/D/C, 10,000 × 2,048": precision_and_its_kin,
    "FID, 10,000 × 2,048": fid,
    "50 batches of 128": batches,
}


# ---------------------------------------------------------------- the table


def as_published(bench, call):
    with published_way.published_layers(bench.device):
        call()


def rows(bench, meter, only, ways):
    """Yields (job, way, the baseline's measurement, ours)."""
    for name, job in NETWORK_JOBS.items():
        if only and not any(text in name for text in only):
            continue
        for way, settings in bench.ways.items():
            if not ways or way in ways:
                torch.compiler.reset()
                baseline = job(bench, BASELINE, baseline=True)
                ours = job(bench, settings, baseline=False)
                yield name, way, *meter(functools.partial(as_published, bench, baseline), ours)
    for name, job in HOST_JOBS.items():
        if not only or any(text in name for text in only):
            yield name, "", *meter(*job(bench.device))


def asked_for(description):
    """The `Bench`, and the parts of the jobs' names and the ways, that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--only", nargs="*", help="parts of the jobs' names")
    parser.add_argument("--ways", nargs="*", help="names of the ways to compute")
    parser.add_argument("--images", type=int, help="of a step; by default the size's")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    size = arguments.size or ("published" if device.type == "cuda" else "small")
    bench = SIZES[size](device)
    bench = dataclasses.replace(bench, batch=arguments.images or bench.batch)
    print(f"{machine(device)}; {size} networks, {bench.batch} images")
    return bench, arguments.only, arguments.ways


def main():
    bench, only, ways = asked_for(__doc__)
    print("; ".join(ceilings(bench.device, bench.side)))
    print("\n| job | ours | s | baseline s | times as fast | GB | baseline GB | share |")
    print("|---|---|---|---|---|---|---|---|")
    for name, way, baseline, ours in rows(bench, Meter(bench.device), only, ways):
        print(
            f"| {name} | {way} | {ours.seconds:.3f} | {baseline.seconds:.3f} "
            f"| {baseline.seconds / ours.seconds:.2f} | {ours.gigabytes:.2f} "
            f"| {baseline.gigabytes:.2f} | {ours.gigabytes / max(baseline.gigabytes, 1e-9):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
