"""Unconstrained, constrained and quasi-conservative scores (Chao et al., ICML 2023, section 3.2).

    python -m experiments.plane --dataset gaussian_8 --kind qcsbm --steps 2000 --seed 0

Trains by the loop of the images, evaluates every checkpoint's asymmetry and the last one's score
error, likelihood and samples, and prints the row; the exact score's own row stands above it. Run
again, it continues where it was cut; without --dataset or --kind it goes through all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import torch
from absl import flags

import datasets
import likelihood
import losses
import run_lib
import sampling
import sde_lib
from configs import points
from experiments import common, oracle
from metrics.prdc import precision_recall_density_coverage
from models import jacobian
from models.scores import EnergyScore, Score
from storage.trained import load_score
from storage.workdir import Workdir

KINDS = {
    "usbm": ("usbm", "exact"),
    "csbm": ("csbm", "exact"),
    "qcsbm": ("qcsbm", "exact"),
    "qcsbm_paper": ("qcsbm", "paper"),
    "qcsbm_skew": ("qcsbm", "skew"),
}
"""Name -> the kind of model, and the estimator of its regulariser."""

LEVELS = 10  # σ_n = 0.1·30^(n/11), n = 0…9
SCORED = 5000  # points at each level: the errors of the smallest are heavy-tailed
MEASURED = 2000  # points of the likelihood
DRAWN = 5000  # samples, and real points that they are compared with
CHECKPOINTS = 4  # of a training, whose asymmetry is followed
COLUMNS = ("score_err", "nasym", "asym", "nats", "nfe", "precision", "recall")


def configure(
    dataset: str, kind: str, *, seed: int, batch: int, steps: int
) -> ml_collections.ConfigDict:
    """The configuration of a training."""
    kind, estimator = KINDS[kind]
    config = points.plane(dataset, kind)
    config.seed = seed
    config.loss.estimator = estimator
    training = config.training
    training.batch_size, training.n_iters = batch, steps
    training.snapshot_freq = training.snapshot_freq_for_preemption = max(1, steps // CHECKPOINTS)
    return config


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured of a score s(x, t): see the methods. Draws depend on the seed alone.

    Args:
        exact: the exact score s(x, t) of the noised density.
        train, test: points (N, 2).
        as_published: the scores are compared at the `train` points' noised ones; the oracle is
            the score of these points, noised, under noise once more, whose variance is so 2σ²;
            the score is asked at another level.
    """

    exact: oracle.ExactScore
    train: torch.Tensor
    test: torch.Tensor
    seed: int
    as_published: bool = False

    @property
    def sde(self) -> sde_lib.VESDE:
        return self.exact.sde

    def noise(self, purpose: str, *numbers: int) -> sampling.SeededNoise:
        return sampling.SeededNoise(torch.device("cpu"), purpose, self.seed, *numbers)

    @functools.cached_property
    def levels(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """`level` of each, drawn once for all models."""
        return [self.level(n) for n in range(LEVELS)]

    def level(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Points (SCORED, 2) at the noise level σ_n, the time (B,) at which a score is asked there,
        and the score (SCORED, 2) that it is compared with.
        """
        x = (self.train if self.as_published else self.test)[:SCORED]
        t = torch.full((len(x),), n / 11)
        sigma = self.sde.sigma(t[0])
        x = x + sigma * self.noise("plane", n).randn_like(x)
        if not self.as_published:
            return x, t, self.exact(x, t)
        noised = self.train + sigma * self.noise("oracle", n).randn_like(self.train)
        exact = oracle.score(x, noised, sigma.item() ** 2).to(x.dtype)
        return x, torch.full_like(t, (n + 1) / LEVELS), exact

    def score_error(self, score: Callable) -> float:
        """The mean over levels of the mean ½‖score − oracle‖²."""
        errors = []
        for x, t, exact in self.levels:
            with torch.no_grad():
                difference = score(x, t) - exact
            errors.append(losses.half_square(difference, reduce_mean=False).mean().item())
        return sum(errors) / LEVELS

    def asymmetry(self, score: Score | EnergyScore) -> dict[str, float]:
        """The means over levels and points of Asym, tr JJᵀ − tr JJ, and NAsym, a dict."""
        values = []
        for x, t, _ in self.levels:
            _, J = jacobian.matrix(functools.partial(score.jvp, x, t), x)
            J = J.detach()
            A = jacobian.asymmetry(J)
            normalised = 0.5 * A / (J.square().sum((1, 2)) + 1e-8)
            values.append((A.mean().item(), normalised.mean().item()))
        asym, nasym = (sum(column) / LEVELS for column in zip(*values))
        return {"asym": asym, "nasym": nasym}

    def nats(self, score: Callable, rtol: float = 1e-3, atol: float = 1e-5) -> float:
        """The negative log-likelihood of a point, with the exact divergence."""
        x = self.test[:MEASURED]
        density, _, _ = likelihood.log_likelihood(
            score, self.sde, x, jacobian.unit_vectors(x), rtol=rtol, atol=atol
        )
        return -density.mean().item()

    def samples(self, score: Callable, sampler: Callable) -> tuple[torch.Tensor, dict[str, float]]:
        """Samples (DRAWN, 2), and a dict of their NFE, precision, recall, density, coverage."""
        noise = self.noise("samples")
        x, nfe = sampler(score, noise.randn((DRAWN, 2)), noise.randn_like)
        real = self.test[:DRAWN].numpy()
        metrics = precision_recall_density_coverage(real, x.numpy(), nearest_k=3)
        return x, {"nfe": float(nfe), **metrics}

    def everything(
        self, score: Callable, sampler: Callable
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Samples, and all of the above but the asymmetry, a dict."""
        x, metrics = self.samples(score, sampler)
        return x, {"score_err": self.score_error(score), "nats": self.nats(score), **metrics}


def measures_of(config: ml_collections.ConfigDict, as_published: bool) -> Measures:
    """The `Measures` of a configuration's set and seed."""
    train, test = (torch.tensor(split.images) for split in datasets.load_both(config.data))
    exact = oracle.ExactScore(oracle.PLANE[config.data.dataset](), sde_lib.from_config(config))
    return Measures(exact, train, test, config.seed, as_published)


def run(
    dataset: str, kind: str, measures: Measures, *, seed: int, batch: int, steps: int
) -> dict[str, float]:
    """Train, measure, record and draw: the row, a dict."""
    config = configure(dataset, kind, seed=seed, batch=batch, steps=steps)
    name = f"experiments/plane/{dataset}_{kind}_b{batch}_s{seed}_{steps}"
    run_lib.train(config, name)
    place, device, sde = Workdir(name), torch.device("cpu"), measures.sde

    curve = []
    for index in range(1, steps // config.training.snapshot_freq + 1):
        score, loaded = load_score(config, place.checkpoint(index), sde, device)
        curve.append({"step": loaded.step, **measures.asymmetry(score)})
    samples, row = measures.everything(score, sampling.from_config(config.sampling, sde))
    row |= {"asym": curve[-1]["asym"], "nasym": curve[-1]["nasym"]}
    published = measures.as_published
    settings = {
        "experiment": f"Plane, {dataset}{', as published' if published else ''}",
        **{"model": kind, "seed": seed, "batch": batch, "steps": loaded.step},
        "points": SCORED,
        "samples": DRAWN,
    }
    entry = "as_published" if published else "corrected"
    place.record(**{entry: {**row, "settings": settings}})
    draw(place, entry, samples, curve, score)
    return row


def floor(dataset: str, measures: Measures) -> dict[str, float]:
    """The row of the exact score, whose Jacobian is symmetric."""
    config = points.plane(dataset, "usbm")
    sampler = sampling.from_config(config.sampling, measures.sde)
    _, row = measures.everything(measures.exact, sampler)
    return {**row, "asym": 0.0, "nasym": 0.0}


def draw(
    place: Workdir,
    name: str,
    samples: torch.Tensor,
    curve: Sequence[Mapping[str, float]],
    score: Score | EnergyScore,
) -> None:
    """The samples, Asym over training, and the curl ∂s₂/∂x₁ − ∂s₁/∂x₂ at t = ½."""
    figure, axes = common.figure_of(1, 3, side=3.4)
    scatter, line, map_ = axes[0]
    scatter.scatter(*samples.T, s=1)
    scatter.set(xlim=(-8, 8), ylim=(-8, 8), aspect="equal")
    steps = [each["step"] for each in curve]
    for key in ("asym", "nasym"):
        line.plot(steps, [each[key] for each in curve], label=key)
    line.set(xlabel="step", yscale="log" if curve[-1]["nasym"] > 0 else "linear")
    line.legend()
    x = torch.from_numpy(common.grid(-8, 8, 60, "float32"))
    _, J = jacobian.matrix(lambda v: score.jvp(x, torch.full((len(x),), 0.5), v), x)
    curl = (J[:, 1, 0] - J[:, 0, 1]).detach().reshape(60, 60).T.numpy()
    image = map_.imshow(curl, origin="lower", extent=(-8, 8, -8, 8), cmap="RdBu")
    figure.colorbar(image, ax=map_)
    map_.set_title("curl at t = ½", fontsize=9)
    common.save_figure(place, name, figure)


def main(seed: int, as_published: bool) -> None:
    FLAGS = flags.FLAGS
    rows = []
    for dataset in [FLAGS.dataset] if FLAGS.dataset else oracle.PLANE:
        size = {"seed": seed, "batch": FLAGS.batch, "steps": FLAGS.steps}
        measures = measures_of(configure(dataset, "usbm", **size), as_published)
        rows.append((dataset, "exact", floor(dataset, measures)))
        for kind in FLAGS.kind or KINDS:
            rows.append((dataset, kind, run(dataset, kind, measures, **size)))
    common.print_table(
        ["set", "model", *COLUMNS],
        [[name, kind, *(f"{row[each]:.4g}" for each in COLUMNS)] for name, kind, row in rows],
    )


if __name__ == "__main__":
    flags.DEFINE_enum("dataset", None, list(oracle.PLANE), "The set of points; without it, all.")
    flags.DEFINE_multi_enum("kind", None, list(KINDS), "Kinds of models; without it, all.")
    flags.DEFINE_integer("batch", 250, "Batch size; the paper's is 5000.")
    flags.DEFINE_integer("steps", 500, "Steps; the paper's are 2000, 4000 for checkerboard.")
    common.launch(
        main, seed=0, published="Ask the oracle at twice the variance, the model at another level."
    )
