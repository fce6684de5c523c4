"""Which part of a score's error moves the marginals, in the plane, where the exact score is known.

    python -m studies.helmholtz --steps 2000 --seeds 0 1 2 3 4

With p the density at a noise level, a score's error is e = s − ∇ log p = ∇φ + r with ∇·(p r) = 0,
where φ solves ∇·(p ∇φ) = ∇·(p e). Alone, r changes no marginal (Horvat and Pfister, ICLR 2024).
In nats, ∫σ²E‖∇φ‖² d log σ, "seen", and ∫σ²E‖r‖² d log σ, "unseen", add up to the bound of Song et
al. (NeurIPS 2021, theorem 1) on the divergence, which the excess NLL over the exact score's
estimates. Energy distances from the data are of samples of s, of s − r and of s − ∇φ.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from absl import flags
from matplotlib.figure import Figure
from scipy import sparse, stats
from scipy.sparse.linalg import splu

import cli
import likelihood
from models import jacobian
from samplers import fast, grids
from storage.files import atomic_write
from studies import common, oracle, plane

LEVELS = 10  # noise levels, at t = (n + ½)/10
COUNT = 129  # nodes along a side of the grid
FLOOR = 1e-10  # of the density, relative to its maximum, for a regular equation
DRAWN = 5000  # samples, and points that they are compared with
STEPS = 30  # of Heun's method
COLUMNS = "seen", "unseen", "KL", "distance", "without r", "without ∇φ"


class Decomposition:
    """e = ∇φ + r on the square [−L, L]², where E‖e‖² = E‖∇φ‖² + E‖r‖² up to rounding.

    φ lives on nodes; of ∇φ and e each component lives in the middles of the edges along it.
    Where p is smaller than `FLOOR`, e is taken for 0.

    Args:
        log_density: log p (B,) at points (B, 2), up to a constant.
    """

    def __init__(self, log_density: Callable, length: float, count: int = COUNT) -> None:
        self.length, self.count = length, count
        line = torch.linspace(-length, length, count, dtype=torch.float64)
        middles = (line[1:] + line[:-1]) / 2
        self.edges = torch.cat(
            [torch.cartesian_prod(middles, line), torch.cartesian_prod(line, middles)]
        )
        log_p = log_density(self.edges).numpy()
        weights = np.exp(log_p - log_p.max())
        self.inside = weights > FLOOR
        weights = weights.clip(FLOOR)
        self.weights = 2 * weights / weights.sum()  # 1 for each component
        one, step = sparse.eye_array(count), 2 * length / (count - 1)
        d = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(count - 1, count)) / step
        gradient = sparse.vstack([sparse.kron(d, one), sparse.kron(one, d)]).tocsr()
        # φ is 0 at a node of the largest density, since it is free up to a constant.
        pinned = gradient[[weights.argmax()]].tocoo().coords[1][0]
        self.gradient = gradient[:, np.arange(count**2) != pinned]
        laplacian = self.gradient.T @ sparse.diags_array(self.weights) @ self.gradient
        options = {"SymmetricMode": True}
        self.factor = splu(laplacian.tocsc(), "MMD_AT_PLUS_A", diag_pivot_thresh=0, options=options)

    def on_edges(self, field: Callable) -> np.ndarray:
        """The components of a field (B, 2) at x (B, 2) that live on the edges."""
        first = (np.arange(len(self.edges)) < len(self.edges) // 2)[self.inside]
        values = field(self.edges[self.inside]).double().numpy()
        result = np.zeros(len(self.edges))
        result[self.inside] = np.where(first, values[:, 0], values[:, 1])
        return result

    def split(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """∇φ and r on the edges."""
        phi = self.factor.solve(self.gradient.T @ (self.weights * e))
        seen = self.inside * (self.gradient @ phi)
        return seen, e - seen

    def mean_square(self, e: np.ndarray) -> float:
        """E‖e‖²."""
        return float(self.weights @ e**2)

    def on_nodes(self, e: np.ndarray) -> torch.Tensor:
        """The field as a picture (1, 2, count, count): means of the edges beside each node."""
        first, second = np.split(e, 2)
        first = np.pad(first.reshape(-1, self.count), ((1, 1), (0, 0)), "edge")
        second = np.pad(second.reshape(self.count, -1), ((0, 0), (1, 1)), "edge")
        sums = np.stack([first[1:] + first[:-1], second[:, 1:] + second[:, :-1]])
        return torch.from_numpy(sums / 2).float()[None]


@dataclasses.dataclass(frozen=True)
class Corrected:
    """A score s(x, t) less fields on grids, `fields` (picture, L) of each noise level.

    They are interpolated linearly in space and in t; outside of the grids they are 0.
    """

    score: Callable
    fields: list

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        place = min(max(t[0].item() * LEVELS - 0.5, 0.0), LEVELS - 1.001)
        values = [self.at(x, *self.fields[int(place) + k]) for k in (0, 1)]
        return self.score(x, t) - torch.lerp(*values, place % 1)

    def at(self, x: torch.Tensor, picture: torch.Tensor, length: float) -> torch.Tensor:
        where = (x / length).flip(1)[None, None]  # a picture's last axis comes first
        return F.grid_sample(picture, where, align_corners=True)[0, :, 0].T


def levels_of(measures: plane.Measures) -> list[tuple[float, Decomposition, np.ndarray]]:
    """For each noise level t, the decomposition, and the exact score on its edges."""
    levels, exact = [], measures.exact.score
    for t in (np.arange(LEVELS) + 0.5) / LEVELS:
        sigma = measures.sde.noise_level(t)
        part = Decomposition(lambda x, v=sigma**2: exact.log_density(x, v), 8 + 4 * sigma)
        levels.append((t, part, part.on_edges(lambda x, v=sigma**2: exact(x, v))))
    return levels


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """2E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ of (N, 2) and (N, 2), without bias."""
    within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return (2 * torch.cdist(x, y).mean() - sum(within)).item()


def divergence(score: Callable, exact: oracle.ExactScore, x: torch.Tensor) -> float:
    """The mean of log p − log q at x (N, 2): p the exact density at σmin, q the model's.

    Both are p at σmax, in place of N(0, σmax² I).
    """
    sde, v = exact.sde, 2**0.5 * jacobian.unit_vectors(x)
    log_q, z, _ = likelihood.log_likelihood(score, sde, x, v, rtol=1e-3, atol=1e-5)
    log_q = log_q - sde.prior_logp(z) + exact.score.log_density(z, sde.sigma_max**2)
    return (exact.score.log_density(x, sde.sigma_min**2) - log_q).mean().item()


@torch.no_grad()
def measure(score: Callable, measures: plane.Measures, levels: list) -> dict[str, float]:
    """The row of a score."""
    sde, sizes, seen, unseen = measures.sde, [], [], []
    for t, part, exact in levels:
        values = part.on_edges(lambda x, t=t: score(x.float(), torch.full((len(x),), t)))
        both = part.split(values - exact)
        sizes.append([sde.noise_level(t) ** 2 * part.mean_square(field) for field in both])
        for kept, field in zip((seen, unseen), both):
            kept.append((part.on_nodes(field), part.length))
    nats = math.log(sde.sigma_max / sde.sigma_min) * np.mean(sizes, axis=0)
    first, last = measures.test[: 2 * DRAWN].split(DRAWN)
    noise = measures.noise("helmholtz")
    real = first + sde.sigma_min * noise.randn_like(first)
    latents = last / sde.sigma_max + noise.randn_like(last)
    sampler = fast.FastSampler(fast.SAMPLERS["heun"], sde, grids.of_sde(sde, STEPS)[:-1])
    scores = score, Corrected(score, unseen), Corrected(score, seen)
    distances = [energy_distance(sampler(each, latents)[0], real) for each in scores]
    kl = divergence(score, measures.exact, real[: plane.MEASURED])
    return dict(zip(COLUMNS, (*nats, kl, *distances)))


def print_correlations(rows: list[dict[str, float]]) -> None:
    """Spearman's, of each part with the likelihood and the samples' distance."""
    for part, outcome in itertools.product(COLUMNS[:2], COLUMNS[2:4]):
        found = stats.spearmanr(*zip(*((row[part], row[outcome]) for row in rows)))
        print(f"{part}, {outcome}: rank correlation {found.statistic:.2f}, p = {found.pvalue:.2g}")


def plot(column: Sequence, results: dict) -> None:
    """Bars: both parts of the errors, and the distances of the samples, means over the seeds."""
    for axes, names in zip(column, (COLUMNS[:2], COLUMNS[3:])):
        for k, name in enumerate(names):
            heights = [np.mean([row[name] for row in rows]) for rows in results.values()]
            axes.bar(np.arange(len(results)) + k / 4, heights, 0.25, label=name)
        axes.set_xticks(np.arange(len(results)) + 0.25, list(results))
        axes.legend()


def main() -> None:
    FLAGS = flags.FLAGS
    figure = Figure(figsize=(11, 6), layout="constrained")
    for column, dataset in zip(figure.subplots(2, len(oracle.PLANE)).T, oracle.PLANE):
        results, levels = {}, []
        for seed, kind in itertools.product(FLAGS.seeds, plane.KINDS):
            config = plane.configure(dataset, kind, seed, FLAGS.batch, FLAGS.steps)
            measures, score = plane.measures_of(config), plane.train(config, kind)
            levels = levels or levels_of(measures)
            results.setdefault(kind, []).append(measure(score, measures, levels))
        common.print_seeds(dataset, results, reference="usbm")
        print_correlations(results["usbm"] + results["csbm"])  # QC's begin as U's, and end near
        plot(column, results)
        column[0].set_title(dataset)
    with atomic_write(pathlib.Path("results/studies/helmholtz.png")) as file:
        figure.savefig(file, format="png", dpi=100)


if __name__ == "__main__":
    plane.define_flags()
    cli.launch(main, lists=["seeds"])
