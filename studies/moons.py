"""Likelihood scores on two interleaved half-moons (Chao et al., ICLR 2022).

    python -m studies.moons --steps 1200 --seeds 0 1 2 3 4

Trains a score model, then classifiers with each loss (ce, dlsm, total) against it, with the
training loop for images. Prints the distances of their scores from the exact ones and metrics of
guided samples, mean ± standard deviation over seeds. Run again, it continues.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
import torch
from absl import flags

import cli
import datasets
import losses
import run_lib
import sampling
import sde_lib
from configs import points
from metrics.prdc import precision_recall_density_coverage
from models.scores import GuidedScore
from models.trained import load_classifier, load_score
from samplers import fast, grids
from sde_lib import VESDE, expand
from storage.workdir import Workdir
from studies import common, oracle
from training.classifier import ClassifierTraining
from utils import UserError

MOONS = ("upper", "lower")  # by label
SIGMA = 7.5  # at which scores are compared, and samples as published
SCORE_BATCH = 1000
DRAWN, PUBLISHED_DRAWN = 1000, 2000  # samples of each class
BLUR = 1.0  # noise of samples and of real points, which lie on a curve, to compare them
HEUN_STEPS, PUBLISHED_STEPS = 18, 1000
CORRECTOR = 3.5  # ε of the published corrector


def fourth_power(s, sde, t, std, z):
    """σ² s + σ z: the weighting λ = σ⁴."""
    return expand(std, z) * losses.variance_weighting(s, sde, t, std, z)


losses.WEIGHTINGS["fourth_power"] = lambda config: fourth_power


# ---------------------------------------------------------------- the exact scores


@dataclasses.dataclass(frozen=True)
class Truth:
    """The exact scores at σ = 7.5 on a grid of 35×35 points of [−40, 40]×[−25, 25].

    Args:
        moons: the points (N, 2) of each class.
        as_published: add 1e-8 to the oracle's densities, and draw and compare as published.
    """

    moons: list
    as_published: bool = False

    @functools.cached_property
    def grid(self) -> torch.Tensor:
        return torch.from_numpy(common.grid(-1, 1, 35, "float32")) * torch.tensor([40.0, 25.0])

    def exact(self, points: torch.Tensor) -> torch.Tensor:
        """The score (1225, 2) of `points` (N, 2) under the noise."""
        known = oracle.Gaussians(points)
        score = known(self.grid, SIGMA**2)
        if not self.as_published:
            return score
        share = torch.sigmoid(known.log_density(self.grid, SIGMA**2) - math.log(1e-8))
        return score * share[:, None]

    @functools.cached_property
    def scores(self) -> list[torch.Tensor]:
        """∇ log p(x), and ∇ log p(x | y) of each class, (1225, 2) each."""
        return [self.exact(points) for points in (torch.cat(self.moons), *self.moons)]

    def distances(self, full: torch.Tensor, *posteriors: torch.Tensor) -> dict[str, float]:
        """D of a score (1225, 2) on the grid; Dp and Dl of the posterior scores of each class.

        D and Dp are mean distances from the exact scores, Dl that of the likelihood scores, which
        are the differences of the two.
        """
        error = full - self.scores[0]
        result = {"D": mean_norm(error)}
        for moon, posterior, exact in zip(MOONS, posteriors, self.scores[1:]):
            result[f"Dp {moon}"] = mean_norm(posterior - exact)
            result[f"Dl {moon}"] = mean_norm(posterior - exact - error)
        return result

    @torch.no_grad()
    def of_models(self, *scores: Callable, sde: VESDE) -> dict[str, float]:
        """The distances of a score s(x, t) and of the guided one of each class."""
        t = torch.full((len(self.grid),), sde.time(SIGMA))
        return self.distances(*(score(self.grid, t).double() for score in scores))

    def of_nothing(self) -> dict[str, float]:
        """The distances of the zero function as prior, posterior and likelihood score."""
        return self.distances(*map(torch.zeros_like, self.scores))


def mean_norm(vectors: torch.Tensor) -> float:
    return vectors.norm(dim=1).mean().item()


# ---------------------------------------------------------------- samples


def draw_heun(score: Callable, sde: VESDE, noise: sampling.SeededNoise) -> torch.Tensor:
    """Samples (DRAWN, 2) by Heun's method from σ = 10 to 0.001 and then 0."""
    sampler = fast.FastSampler(fast.SAMPLERS["heun"], sde, grids.of_sde(sde, HEUN_STEPS))
    return sampler(score, noise.randn((DRAWN, 2)), noise.randn_like)[0]


@torch.no_grad()
def draw_published(score: Callable, sde: VESDE, noise: sampling.SeededNoise) -> torch.Tensor:
    """Samples (PUBLISHED_DRAWN, 2) of the published code: σ ascends, without a predictor.

    From N(0, I), x += √(2ε)·s + ε·z at σ_i = 1e-3·(1e4)^(i/1000).
    """
    x = noise.randn((PUBLISHED_DRAWN, 2))
    for i in range(PUBLISHED_STEPS):
        s = score(x, torch.full((len(x),), i / PUBLISHED_STEPS))
        x = x + (2 * CORRECTOR) ** 0.5 * s + CORRECTOR * noise.randn_like(x)
    return x


def measure_samples(
    scores: Sequence[Callable], sde: VESDE, truth: Truth, seed: int
) -> dict[str, float]:
    """Means over the classes of P/R/D/C (k = 5) and the share nearest to their own moon.

    Corrected, samples and real points are compared with noise `BLUR`; as published, real points
    have noise `SIGMA`.

    Raises:
        UserError: the samples diverged.
    """
    draw = draw_published if truth.as_published else draw_heun
    rows = []
    for label, score in enumerate(scores):
        noise = sampling.SeededNoise(torch.device("cpu"), "moons", seed, label)
        x = draw(score, sde, noise)
        if not x.isfinite().all():
            raise UserError(
                "The samples diverged with these scores; train for longer (--steps, --score_steps)."
            )
        real = truth.moons[label][-len(x) :]
        fake = x if truth.as_published else x + BLUR * noise.randn_like(x)
        real = real + (SIGMA if truth.as_published else BLUR) * noise.randn_like(real)
        metrics = precision_recall_density_coverage(real.numpy(), fake.numpy(), nearest_k=5)
        own, other = (torch.cdist(x, truth.moons[y]).amin(1) for y in (label, 1 - label))
        rows.append({**metrics, "right moon": (own <= other).double().mean().item()})
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


# ---------------------------------------------------------------- training and measuring


def train_score(steps: int) -> pathlib.Path:
    """Train the score model, with seed 0; returns its newest checkpoint."""
    config = points.moons()
    config.seed = 0
    config.training.batch_size, config.training.n_iters = SCORE_BATCH, steps
    config.training.weighting, config.training.reduce_mean = "fourth_power", True
    name = f"studies/moons/score{steps}"
    run_lib.train(config, name)
    return Workdir(name).checkpoint()


def run(
    config: ml_collections.ConfigDict, name: str, score_path: pathlib.Path, truth: Truth
) -> dict[str, float]:
    """Train a classifier, and measure: the row, a dict."""
    run_lib.train(config, name, make_job=ClassifierTraining)
    device = torch.device("cpu")
    sde, score = sde_lib.from_config(config), load_score(config, score_path, device).score
    classifier, _, _ = load_classifier(config, Workdir(name).checkpoint(), device)
    guided = [GuidedScore(score, classifier, sde, torch.tensor([label])) for label in range(2)]
    samples = measure_samples(guided, sde, truth, config.seed)
    return truth.of_models(score, *guided, sde=sde) | samples


def main() -> None:
    FLAGS = flags.FLAGS
    config = points.moons()
    split = datasets.load(config.data, "train")
    moons = [torch.tensor(np.array(split.images[split.labels == label])) for label in range(2)]
    truth = Truth(moons, FLAGS.as_published)
    score_path = train_score(FLAGS.score_steps)
    results = {"zero": [truth.of_nothing()]}
    if not FLAGS.as_published:  # the published sampler diverges with the exact score
        sde = sde_lib.from_config(config)
        exact = [oracle.ExactScore(oracle.Gaussians(moon[:DRAWN]), sde) for moon in moons]
        results["exact"] = [measure_samples(exact, sde, truth, FLAGS.seeds[0])]
    for seed in FLAGS.seeds:
        for loss_type in points.MOONS_RATES:
            config = points.moons_classifier(loss_type, score_path)
            config.seed = seed
            config.training.batch_size, config.training.n_iters = FLAGS.batch, FLAGS.steps
            size = f"{FLAGS.steps}_b{FLAGS.batch}_s{seed}_{FLAGS.score_steps}"
            row = run(config, f"studies/moons/{loss_type}{size}", score_path, truth)
            results.setdefault(loss_type, []).append(row)
    common.print_seeds("loss", results, reference="ce")


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 3000, "Steps of each classifier; the paper's are 40002.")
    flags.DEFINE_integer("batch", 250, "Batch size of each classifier; the paper's is 4000.")
    flags.DEFINE_integer("score_steps", 6000, "Steps of the score model; the paper's are 40002.")
    common.define_seeds([0])
    flags.DEFINE_bool("as_published", False, "Sample and compare as the published code does.")
    cli.launch(main, lists=["seeds"])
