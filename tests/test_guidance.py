"""Class guidance: parity with the published samplers, and the exact posterior of Gaussians."""

import golden
import pytest
import torch
from device_option import DEVICE
from gaussian import GaussianData
from test_sampling import GoldenNoise, check_moments, pc_sampler

import sampling
import sde_lib
from models.scores import GuidedScore, Score, class_log_likelihood


@pytest.mark.parametrize("name", golden.names("pc_cond_", "dlsm"))
def test_guided_samples_are_the_published_ones(name):
    entry, data = golden.manifest("dlsm")[name], golden.arrays(name)
    sde = golden.sde(entry["sde"], entry["N"])
    assert sde.sampling_eps == entry["eps"]
    score = GuidedScore(
        Score(golden.network(entry["model"], "dlsm"), sde),
        golden.classifier(entry["classifier"]),
        sde,
        data["labels"],
        entry["scaling_factor"],
    )
    sampler = pc_sampler(
        sde,
        entry["predictor"],
        entry["corrector"],
        snr=entry["snr"],
        n_steps=entry["n_steps"],
        probability_flow=entry["probability_flow"],
    )
    noise = GoldenNoise(entry["noise_seed_first"])
    latents = noise.randn_like(torch.empty(entry["shape"], device=DEVICE))
    samples, nfe = sampler(score, latents, noise.randn_like)
    assert noise.next - entry["noise_seed_first"] == entry["noise_draws"]
    assert nfe == golden.evaluations(entry, data["nfe"])
    assert (samples - data["samples"]).abs().max() < 1e-3 * data["samples"].std()


def test_the_log_likelihood():
    logits = torch.randn(5, 3, dtype=torch.float64, device=DEVICE)
    labels = torch.tensor([0, 2, 1, 1, 0], device=DEVICE)
    expected = torch.log(torch.softmax(logits, 1) + 1e-8)[torch.arange(5, device=DEVICE), labels]
    torch.testing.assert_close(class_log_likelihood(logits, labels), expected)


class TwoClasses:
    """Class 0 is N(−μ, s²) in every dimension and class 1 N(μ, s²), equally likely."""

    def __init__(self, sde, mean=0.8, std=0.5):
        self.means, self.sde = (-mean, mean), sde
        self.classes = [GaussianData(m, std, sde) for m in self.means]

    def classifier(self, x, sigma):
        """Log densities of both classes, the logits of the exact classifier (VE)."""
        squares = [(x - m).square().flatten(1).sum(1) for m in self.means]
        variance = self.classes[0].std ** 2 + sigma**2
        return torch.stack([-s / (2 * variance) for s in squares], dim=1)

    def score(self, x, t):
        """The mixture's score: the classes' scores by their posterior probability."""
        _, sigma = self.sde.marginal_prob(x, t)
        p = torch.softmax(self.classifier(x, sigma), 1)
        shape = (-1,) + (1,) * (x.ndim - 1)
        return sum(p[:, y].reshape(shape) * data.score(x, t) for y, data in enumerate(self.classes))


VE = sde_lib.VESDE()


def test_the_guided_score_is_the_class_score():
    problem = TwoClasses(VE)
    torch.manual_seed(0)
    # Nearby, where no class is so improbable that the 1e-8 shows.
    x, t = 0.5 * torch.randn(64, 1, 2, 1, device=DEVICE), 0.6 + 0.4 * torch.rand(64, device=DEVICE)
    labels = torch.randint(2, (64,), device=DEVICE)
    exact = torch.stack([problem.classes[y].score(x, t)[i] for i, y in enumerate(labels)])
    guided = GuidedScore(problem.score, problem.classifier, VE, labels)
    assert (guided(x, t) - exact).abs().max() < 1e-3 * exact.abs().max()
    # Another scale adds that many times the likelihood's score.
    prior = problem.score(x, t)
    tenfold = GuidedScore(problem.score, problem.classifier, VE, labels, scale=10.0)
    assert (tenfold(x, t) - prior - 10 * (exact - prior)).abs().max() < 1e-2 * exact.abs().max()


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "sampler",
    [pc_sampler(VE, "reverse_diffusion", "none", snr=0.1), sampling.ODESampler(VE, 1e-5, 1e-5)],
    ids=["pc", "ode"],
)
def test_guidance_by_the_exact_classifier_draws_the_class(sampler, label):
    torch.manual_seed(0)
    problem = TwoClasses(VE)
    guided = GuidedScore(
        problem.score, problem.classifier, VE, torch.tensor([label], device=DEVICE)
    )
    samples, _ = sampler(guided, torch.randn(512, 1, 2, 1, device=DEVICE))
    check_moments(samples, problem.means[label], 0.5)
