"""DLSM against cross-entropy where the true likelihood score is known.

    python -m studies.two_gaussians

Two Gaussian classes N(m_y, s² I) in two dimensions, equally likely, under the VE SDE. Everything is
known: p_t(x | y) = N(m_y, (s² + σ²) I), the mixture's score, and the likelihood score
g = ∇ₓ log p_t(y | x). A small classifier is trained with each loss, from fresh points, beside the
exact score of the mixture. Printed are the mean squared errors of its likelihood score ĝ over fresh
(x, y, t), relative to g's own: E‖ĝ − g‖² / E‖g‖² and, in the units in which a sampler at noise
level σ takes g, E σ²‖ĝ − g‖² / E σ²‖g‖².
"""

import dataclasses

import torch
from torch import nn

import losses
import sde_lib
from models.scores import class_log_likelihood, input_gradient
from studies import common

LOSSES = {  # name -> the settings of `losses.DLSM`; None: cross-entropy
    "CE": None,
    "DLSM + CE, w = 0": {},
    "DLSM + CE, w = 1": {"weighting_dlsm": 1},
    "DLSM, w = 1": {"weighting_dlsm": 1, "coef": 0},
}


@dataclasses.dataclass(frozen=True)
class TwoGaussians:
    """The two classes; points are (B, 2), labels (B,), times (B,)."""

    sde: sde_lib.SDE
    means: tuple = ((-1.0, 0.0), (1.0, 0.0))
    std: float = 0.2

    def sample(self, count):
        """Points and labels, half of each class."""
        labels = torch.arange(count) % 2
        return torch.tensor(self.means)[labels] + self.std * torch.randn(count, 2), labels

    def classifier(self, x, sigma):
        """log p_t(x | y) up to a constant, (B, 2): the logits of the exact classifier."""
        squares = (x[:, None] - torch.tensor(self.means)).square().sum(2)
        variance = self.std**2 + sigma[:, None] ** 2
        return -squares / (2 * variance) - torch.log(variance)

    def score(self, x, t):
        """∇ₓ log p_t(x) of the mixture."""
        _, sigma = self.sde.marginal_prob(x, t)
        with torch.no_grad():
            return input_gradient(lambda x: self.classifier(x, sigma).logsumexp(1), x)


class Classifier(nn.Module):
    """A multilayer perceptron of points (B, 2) and σ (B,) to logits (B, 2)."""

    def __init__(self, width=64):
        super().__init__()
        hidden = nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x, sigma):
        scale = torch.sqrt(1 + sigma**2)[:, None]
        return self.layers(torch.cat([x / scale, torch.log(sigma)[:, None]], dim=1))


def train(problem, name, seed, steps, batch):
    """A classifier trained with the loss `name`, one of `LOSSES`, on fresh points every step."""
    torch.manual_seed(seed)
    classifier, sde = Classifier(), problem.sde
    eps, settings = sde.sampling_eps, LOSSES[name]
    if settings is None:
        objective = losses.CrossEntropy(classifier, sde, eps)
    else:
        objective = losses.DLSM(classifier, problem.score, sde, eps, **settings)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        x, labels = problem.sample(batch)
        loss, _ = objective(x, labels, objective.draw(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier


def errors(problem, classifier, count=20000):
    """The relative mean squared error of the likelihood score, and the one weighted by σ²."""
    torch.manual_seed(12345)
    x, labels = problem.sample(count)
    t = losses.draw_times(torch.rand(count), problem.sde, problem.sde.sampling_eps)
    x_t, sigma = sde_lib.perturb(problem.sde, x, t, torch.randn_like(x))

    def likelihood_score(classifier):
        with torch.no_grad():
            gradient = input_gradient(
                lambda x: class_log_likelihood(classifier(x, sigma), labels), x_t
            )
        return gradient.double()

    exact = likelihood_score(problem.classifier)
    error = (likelihood_score(classifier) - exact).square().sum(1)
    size = exact.square().sum(1)
    weighted = (sigma**2 * error).mean() / (sigma**2 * size).mean()
    return float(error.mean() / size.mean()), float(weighted)


def main(steps=800, batch=1024, seeds=(0, 1, 2)):
    problem = TwoGaussians(sde_lib.VESDE(0.05, 5.0))
    results = {}
    for name in LOSSES:
        for seed in seeds:
            plain, weighted = errors(problem, train(problem, name, seed, steps, batch))
            results.setdefault(name, []).append({"error": plain, "σ²-weighted": weighted})
    common.print_seeds("loss", results, reference="CE")


if __name__ == "__main__":
    main()
