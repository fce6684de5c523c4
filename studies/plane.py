"""Unconstrained, constrained and quasi-conservative scores (Chao et al., ICML 2023, section 3.2).

    python -m studies.plane --dataset gaussian_8 --steps 2000 --seeds 0 1 2

Trains with the training loop for images, measures asymmetry, score error, likelihood and samples,
and prints mean ± standard deviation over seeds; the first row is the exact score's. Run again, it
continues; without --dataset it runs all data sets.
"""

import dataclasses
import functools
from collections.abc import Callable

import ml_collections
import torch
from absl import flags

import cli
import datasets
import likelihood
import losses
import run_lib
import sampling
import sde_lib
from configs import points
from metrics.prdc import precision_recall_density_coverage
from models import jacobian
from models.scores import EnergyScore, Score
from models.trained import load_score
from storage.workdir import Workdir
from studies import common, oracle

KINDS = "usbm", "qcsbm", "csbm"
LEVELS = 10  # σ_n = 0.1·30^(n/11), n = 0…9
SCORED = 5000  # points at each level: the errors of the smallest are heavy-tailed
MEASURED = 2000  # points of the likelihood
DRAWN = 5000  # samples, and real points that they are compared with


def configure(
    dataset: str, kind: str, seed: int, batch: int, steps: int
) -> ml_collections.ConfigDict:
    """The configuration of a training."""
    config = points.plane(dataset, kind)
    config.seed = seed
    training = config.training
    training.batch_size = batch
    training.n_iters = training.snapshot_freq = steps
    return config


@dataclasses.dataclass(frozen=True)
class Measures:
    """The measurements of a score s(x, t), see the methods. Draws depend only on the seed.

    Args:
        exact: the exact score s(x, t) of the noised density.
        test: points (N, 2).
        train: points (N, 2) for `published_level`; None: scores are compared with the exact score.
    """

    exact: oracle.ExactScore
    test: torch.Tensor
    seed: int
    train: torch.Tensor | None = None

    @property
    def sde(self) -> sde_lib.VESDE:
        return self.exact.sde

    def noise(self, purpose: str, *numbers: int) -> sampling.SeededNoise:
        return sampling.SeededNoise(torch.device("cpu"), purpose, self.seed, *numbers)

    @functools.cached_property
    def levels(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """At each noise level σ_n points (SCORED, 2), the time (B,) and the exact score there."""
        if self.train is not None:
            return [self.published_level(n) for n in range(LEVELS)]
        x, result = self.test[:SCORED], []
        for n in range(LEVELS):
            t = torch.full((len(x),), n / 11)
            noise = self.noise("plane", n).randn_like(x)
            x_t = x + self.sde.sigma(t[0]) * noise
            result.append((x_t, t, self.exact(x_t, t)))
        return result

    def published_level(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A level of the published code: the score is evaluated at another time than the oracle.

        The oracle is the score of noised training points under noise, so of variance 2σ_n².
        """
        sigma = self.sde.sigma(torch.tensor(n / 11)).item()
        x_t, noised = (
            self.train + sigma * self.noise(name, n).randn_like(self.train)
            for name in ("plane", "oracle")
        )
        x_t = x_t[:SCORED]
        exact = oracle.Gaussians(noised)(x_t, sigma**2).to(x_t.dtype)
        return x_t, torch.full((len(x_t),), (n + 1) / LEVELS), exact

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
            _, J = jacobian.matrix(functools.partial(score.value_and_jvp, x, t), x)
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
            score, self.sde, x, 2**0.5 * jacobian.unit_vectors(x), rtol=rtol, atol=atol
        )
        return -density.mean().item()

    def samples(self, score: Callable, sampler: Callable) -> dict[str, float]:
        """NFE, precision, recall, density and coverage of samples (DRAWN, 2), a dict."""
        noise = self.noise("samples")
        x, nfe = sampler(score, noise.randn((DRAWN, 2)), noise.randn_like)
        real = self.test[:DRAWN].numpy()
        metrics = precision_recall_density_coverage(real, x.numpy(), nearest_k=3)
        return {"nfe": float(nfe), **metrics}

    @functools.cached_property
    def noised(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (DRAWN, 2) of the exact density at σmin, and others at σmax."""
        noise, (first, last) = self.noise("noised"), self.test[: 2 * DRAWN].chunk(2)
        sigmas = self.sde.sigma_min, self.sde.sigma_max
        return tuple(x + s * noise.randn_like(x) for x, s in zip((first, last), sigmas))

    def divergence(self, score: Callable) -> float:
        """KL of the exact density at σmin from the flow's, which starts at the exact one at σmax.

        In nats; the mean over MEASURED points of log p − log q, with the exact divergence.
        """
        x, density = self.noised[0][:MEASURED], self.exact.score.log_density
        v = 2**0.5 * jacobian.unit_vectors(x)
        log_q, z, _ = likelihood.log_likelihood(score, self.sde, x, v, rtol=1e-3, atol=1e-5)
        log_q = log_q - self.sde.prior_logp(z) + density(z, self.sde.sigma_max**2)
        return (density(x, self.sde.sigma_min**2) - log_q).mean().item()

    def distance(self, score: Callable, sampler: Callable) -> float:
        """The unbiased energy distance of samples at σmin from exact ones.

        2E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ (Székely and Rizzo). It starts as in `divergence`.
        """
        y, start = self.noised
        x, _ = sampler(score, start / self.sde.sigma_max)
        within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
        return (2 * torch.cdist(x, y).mean() - sum(within)).item()

    def everything(self, score: Callable, sampler: Callable) -> dict[str, float]:
        """All of the above but the asymmetry, a dict."""
        metrics = {"score_err": self.score_error(score), "nats": self.nats(score)}
        return metrics | self.samples(score, sampler)


def measures_of(config: ml_collections.ConfigDict, as_published: bool = False) -> Measures:
    """The `Measures` of a configuration's set and seed."""
    test = torch.tensor(datasets.load(config.data, "test").images)
    train = torch.tensor(datasets.load(config.data, "train").images) if as_published else None
    exact = oracle.ExactScore(oracle.PLANE[config.data.dataset](), sde_lib.from_config(config))
    return Measures(exact, test, config.seed, train)


def train(config: ml_collections.ConfigDict, kind: str) -> Score | EnergyScore:
    """The trained score."""
    training = config.training
    size = f"b{training.batch_size}_s{config.seed}_{training.n_iters}"
    name = f"studies/plane/{config.data.dataset}_{kind}_{size}"
    run_lib.train(config, name)
    return load_score(config, Workdir(name).checkpoint(), torch.device("cpu")).score


def run(config: ml_collections.ConfigDict, kind: str, measures: Measures) -> dict[str, float]:
    """Train and measure: the row, a dict."""
    score = train(config, kind)
    sampler = sampling.from_config(config.sampling, measures.sde)
    return measures.everything(score, sampler) | measures.asymmetry(score)


def define_flags() -> None:
    """Define the flags of the trainings."""
    flags.DEFINE_integer("batch", 250, "Batch size; the paper's is 5000.")
    flags.DEFINE_integer("steps", 500, "Steps; the paper's are 2000, 4000 for checkerboard.")
    common.define_seeds([0])


def main() -> None:
    FLAGS = flags.FLAGS
    for dataset in [FLAGS.dataset] if FLAGS.dataset else oracle.PLANE:
        results = {}
        for seed in FLAGS.seeds:
            size = seed, FLAGS.batch, FLAGS.steps
            configs = {kind: configure(dataset, kind, *size) for kind in KINDS}
            config = configs[KINDS[0]]
            measures = measures_of(config, FLAGS.as_published)
            if not results:  # the exact score's Jacobian is symmetric
                sampler = sampling.from_config(config.sampling, measures.sde)
                row = measures.everything(measures.exact, sampler)
                results["exact"] = [{**row, "asym": 0.0, "nasym": 0.0}]
            for kind, config in configs.items():
                results.setdefault(kind, []).append(run(config, kind, measures))
        common.print_seeds(dataset, results, reference="usbm")


if __name__ == "__main__":
    flags.DEFINE_enum("dataset", None, list(oracle.PLANE), "The set of points; without it, all.")
    flags.DEFINE_bool("as_published", False, "Compare scores as the published code does.")
    define_flags()
    cli.launch(main, lists=["seeds"])
