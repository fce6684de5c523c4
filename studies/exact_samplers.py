"""Samples of each sampler with an exact score and classifier: two Gaussians on a line.

    python -m studies.exact_samplers

First Gaussians at −1 and 1 of standard deviation ¼ and weights 0.3 and 0.7: the share of samples
below 0, and their standard deviation over the exact one; the same with a score 5 % too small. Then
two classes N(−0.5, 0.4²) and N(0.5, 0.4²) and the guided score of the first at scale 3: the mean of
the samples and of p(x)·p(y|x)³. The figure is results/studies/exact_samplers.png.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure

import sampling
from configs import common
from models.scores import GuidedScore
from samplers.fast import SAMPLERS
from sde_lib import VESDE
from storage.files import atomic_write
from studies.common import print_table

DRAWN, STEPS = 20000, 25  # samples; steps of the fast samplers
SCALE = 3.0
SHOWN = "PC", "heun", "dpmpp_2m_sde", "dpmpp_2m_sde_eta2"


@dataclasses.dataclass(frozen=True)
class TwoGaussians:
    """weight·N(−mean, std²) + (1 − weight)·N(mean, std²) under VE noise, points x (B, 1)."""

    weight: float
    mean: float
    std: float

    def logits(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The exact classifier (B, 2) at noise levels σ (B,)."""
        centres = torch.tensor([-self.mean, self.mean], dtype=x.dtype)
        shares = torch.tensor([self.weight, 1 - self.weight], dtype=x.dtype)
        return shares.log() - (x - centres).square() / (2 * (self.std**2 + sigma[:, None] ** 2))

    def score(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The exact score (B, 1)."""
        sigma = SDE.sigma(t)
        left, right = torch.softmax(self.logits(x, sigma), 1).T
        return ((right - left) * self.mean - x[:, 0])[:, None] / (self.std**2 + sigma**2)[:, None]

    def guided_target(self, line: np.ndarray) -> np.ndarray:
        """p(x)·p(y = 0 | x)^SCALE on an even `line`, of sum 1."""
        logits = self.logits(torch.from_numpy(line)[:, None], torch.zeros(len(line)))
        density = torch.logsumexp(logits, 1) + SCALE * torch.log_softmax(logits, 1)[:, 0]
        return torch.softmax(density, 0).numpy()


SDE = VESDE()
MODES, CLASSES = TwoGaussians(0.3, 1.0, 0.25), TwoGaussians(0.5, 0.5, 0.4)


def samplers(steps: int) -> dict[str, sampling.Sampler]:
    """PC and RK45 as published, and the fast samplers with `steps` steps."""
    settings = common.base("").sampling
    settings.steps = steps
    result = {}
    for name, method in {"PC": "pc", "RK45": "ode", **{name: name for name in SAMPLERS}}.items():
        settings.method = method
        result[name] = sampling.from_config(settings, SDE)
    return result


def draw(score: Callable, sampler: sampling.Sampler) -> tuple[np.ndarray, int]:
    """Samples (DRAWN,) from a fixed seed, and their NFE."""
    noise = sampling.SeededNoise(torch.device("cpu"), "exact_samplers", 0)
    x, nfe = sampler(score, noise.randn((DRAWN, 1)), noise.randn_like)
    return x[:, 0].double().numpy(), nfe


def measure(sampler: sampling.Sampler) -> tuple[dict[str, float], np.ndarray]:
    """The row of a sampler, and its guided samples (DRAWN,)."""
    row = {}
    for ending, factor in (("", 1.0), (", 0.95 s", 0.95)):
        x, row["NFE"] = draw(lambda x, t, factor=factor: factor * MODES.score(x, t), sampler)
        row[f"share left{ending}"] = (x < 0).mean()
        row[f"spread{ending}"] = x[x < 0].std() / MODES.std
    guided = GuidedScore(CLASSES.score, CLASSES.logits, SDE, torch.tensor([0]), SCALE)
    x, _ = draw(guided, sampler)
    row["guided mean"] = x.mean()
    return row, x


def main() -> None:
    line = np.linspace(-3, 2, 2001)
    target = CLASSES.guided_target(line)
    exact = {"share left": MODES.weight, "spread": 1.0, "guided mean": (line * target).sum()}
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(line, target / (line[1] - line[0]), "k", label="p(x)·p(y|x)³")
    rows = []
    for name, sampler in samplers(STEPS).items():
        row, x = measure(sampler)
        rows.append([name, *(f"{value:.4g}" for value in row.values())])
        if name in SHOWN:
            axes.hist(x, bins=100, range=(-2, 1), density=True, histtype="step", label=name)
    rows.insert(0, ["exact", *(f"{exact[key]:.4g}" if key in exact else "" for key in row)])
    print_table(["sampler", *row], rows)
    axes.set(xlim=(-2, 1), xlabel="x", ylabel="density")
    axes.legend()
    with atomic_write(pathlib.Path("results/studies/exact_samplers.png")) as file:
        figure.savefig(file, format="png", dpi=100)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    main()
