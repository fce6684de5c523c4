"""The part of a score's error that changes marginals, in the plane, where exact scores are known.

    python -m studies.helmholtz --steps 2000 --seeds 0 1 2 3 4

At each noise level e = s − ∇ log p = ∇φ + r with ∇·(p ∇φ) = ∇·(p e), so that ∇·(p r) = 0: alone, r
changes no marginal (Horvat and Pfister, ICLR 2024). Columns, in nats: seen ∫σ²E‖∇φ‖² d log σ and
unseen ∫σ²E‖r‖² d log σ, whose sum is the bound of Song et al. (NeurIPS 2021, theorem 1) for the
reverse SDE; KL, the probability flow's. Then energy distances of samples from the data, with s,
s − r and s − ∇φ. Likelihoods and samples begin at the exact density at σmax.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy import sparse, stats
from scipy.sparse.linalg import splu

import cli
from samplers import fast, grids
from studies import common, oracle, plane

TIMES = (np.arange(10) + 0.5) / 10  # of the noise levels
FLOOR = 1e-10  # of the density, relative to its maximum; below it e is taken for 0
COLUMNS = "seen", "unseen", "KL", "distance", "without r", "without ∇φ"


class Decomposition:
    """e = ∇φ + r at the noise level σ, on a square grid, where E‖e‖² = E‖∇φ‖² + E‖r‖².

    φ is defined on `count`² nodes, each component of e at the midpoints of the edges along it.
    `known` is the score (B, 2) at x (B, 2) and a variance of noise, and has a `log_density` (B,).
    """

    def __init__(self, known: Callable, sigma: float, count: int = 129) -> None:
        self.sigma, self.length, self.count = sigma, 8 + 4 * sigma, count
        line = torch.linspace(-self.length, self.length, count, dtype=torch.float64)
        mid = (line[1:] + line[:-1]) / 2
        self.edges = torch.cat([torch.cartesian_prod(mid, line), torch.cartesian_prod(line, mid)])
        log_p = known.log_density(self.edges, variance=sigma**2).numpy()
        weights = np.exp(log_p - log_p.max()).clip(FLOOR)
        self.inside, self.weights = weights > FLOOR, 2 * weights / weights.sum()
        self.exact = self.on_edges(lambda x: known(x, variance=sigma**2))
        one, step = sparse.eye_array(count), 2 * self.length / (count - 1)
        d = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(count - 1, count)) / step
        gradient = sparse.vstack([sparse.kron(d, one), sparse.kron(one, d)]).tocsr()
        # φ is free up to a constant: 0 at a node of the largest density.
        pinned = gradient[[weights.argmax()]].tocoo().coords[1][0]
        self.gradient = gradient[:, np.arange(count**2) != pinned]
        weighted = sparse.diags_array(self.weights) @ self.gradient
        self.factor = splu((self.gradient.T @ weighted).tocsc(), "MMD_AT_PLUS_A")

    def on_edges(self, field: Callable) -> np.ndarray:
        """The components of a field (B, 2) at x (B, 2), each on the edges along it."""
        values, half = np.zeros((len(self.edges), 2)), len(self.edges) // 2
        values[self.inside] = field(self.edges[self.inside])
        return np.concatenate([values[:half, 0], values[half:, 1]])

    def split(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """∇φ and r on the edges."""
        phi = self.factor.solve(self.gradient.T @ (self.weights * e))
        seen = self.inside * (self.gradient @ phi)
        return seen, e - seen

    def mean_square(self, e: np.ndarray) -> float:
        """E‖e‖²."""
        return float(self.weights @ e**2)

    def on_nodes(self, e: np.ndarray) -> torch.Tensor:
        """The field (1, 2, count, count): means over the edges next to each node."""
        first, second = np.split(e, 2)
        first = np.pad(first.reshape(-1, self.count), ((1, 1), (0, 0)), "edge")
        second = np.pad(second.reshape(self.count, -1), ((0, 0), (1, 1)), "edge")
        sums = np.stack([first[1:] + first[:-1], second[:, 1:] + second[:, :-1]])
        return torch.tensor(sums[None] / 2, dtype=torch.float32)


@dataclasses.dataclass(frozen=True)
class Corrected:
    """A score minus `fields`, (nodes, L) of each level, interpolated linearly in space and t."""

    score: Callable
    fields: list

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        place = float(np.interp(t[0].item(), TIMES, np.arange(len(TIMES)))) - 1e-6
        k, result = max(int(place), 0), self.score(x, t)
        for share, (nodes, length) in zip((1 + k - place, place - k), self.fields[k : k + 2]):
            where = (x / length).flip(1)[None, None]  # the last axis of an image comes first
            result = result - share * F.grid_sample(nodes, where, align_corners=True)[0, :, 0].T
        return result


def measure(score: Callable, measures: plane.Measures, levels: list) -> dict[str, float]:
    """The row of a score; `levels` are the decompositions at `TIMES`."""
    sde, sizes, seen, unseen = measures.sde, [], [], []
    for t, level in zip(TIMES, levels):
        with torch.no_grad():
            values = level.on_edges(lambda x, t=t: score(x.float(), torch.full((len(x),), t)))
        both = level.split(values - level.exact)
        sizes.append([level.sigma**2 * level.mean_square(field) for field in both])
        for kept, field in zip((seen, unseen), both):
            kept.append((level.on_nodes(field), level.length))
    nats = math.log(sde.sigma_max / sde.sigma_min) * np.mean(sizes, axis=0)
    sampler = fast.FastSampler(fast.SAMPLERS["heun"], sde, grids.of_sde(sde, 30)[:-1])
    scores = score, Corrected(score, unseen), Corrected(score, seen)
    distances = [measures.distance(each, sampler) for each in scores]
    return dict(zip(COLUMNS, (*nats, measures.divergence(score), *distances)))


def main() -> None:
    FLAGS = plane.flags.FLAGS
    figure = Figure(figsize=(11, 6), layout="constrained")
    for column, (dataset, known) in zip(figure.subplots(2, 3).T, oracle.PLANE.items()):
        levels, results = [], {kind: [] for kind in plane.KINDS}
        for seed, kind in itertools.product(FLAGS.seeds, plane.KINDS):
            config = plane.configure(dataset, kind, seed, FLAGS.batch, FLAGS.steps)
            measures, score = plane.measures_of(config), plane.train(config, kind)
            levels = levels or [Decomposition(known(), measures.sde.noise_level(t)) for t in TIMES]
            results[kind].append(measure(score, measures, levels))
        common.print_seeds(dataset, results, reference="usbm")
        rows = results["usbm"] + results["csbm"]  # QC's begin as U's do, and end near them
        found = {
            pair: stats.spearmanr(*zip(*([row[key] for key in pair] for row in rows)))
            for pair in itertools.product(COLUMNS[:2], COLUMNS[2:4])
        }
        limit = common.holm([each.pvalue for each in found.values()])
        for pair, (value, p) in found.items():
            held = ", held" if p <= limit else ""
            print(f"rank correlation, {', '.join(pair)}: {value:.2f} (p = {p:.2g} of 4{held})")
        units = "nats", "energy distance"
        for axes, names, unit in zip(column, (COLUMNS[:3], COLUMNS[3:]), units):
            for k, name in enumerate(names):
                heights = [np.mean([row[name] for row in rows]) for rows in results.values()]
                axes.bar(np.arange(3) + k / 4, heights, 0.25, label=name)
            axes.set(xticks=np.arange(3) + 0.25, xticklabels=["U", "QC", "C"], ylabel=unit)
            axes.margins(y=0.4)  # room for the legend
            axes.legend(loc="upper left", fontsize="small")
        column[0].set_title(dataset)
    figure.savefig("results/studies/helmholtz.png", dpi=100)


if __name__ == "__main__":
    plane.define_flags()
    cli.launch(main, lists=["seeds"])
