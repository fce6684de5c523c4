"""Class guidance: parity with the published samplers, and the exact posterior of Gaussians."""

import golden
import pytest
import torch
from device_option import DEVICE
from test_sampling import check_moments, check_pc_samples, pc_sampler
from two_gaussians import TwoGaussians

import sampling
import sde_lib
from models.scores import GuidedScore, Score, class_log_likelihood


@pytest.mark.parametrize("name", golden.names("pc_cond_", "dlsm"))
def test_guided_samples_are_the_published_ones(name):
    entry, data = golden.manifest("dlsm")[name], golden.arrays(name)
    sde = golden.sde(entry["sde"], entry["N"])
    score = GuidedScore(
        Score(golden.network(entry["model"], "dlsm"), sde),
        golden.classifier(entry["classifier"]),
        sde,
        data["labels"],
        entry["scaling_factor"],
    )
    check_pc_samples(entry, data, sde, score)


def test_the_log_likelihood():
    logits = torch.randn(5, 3, dtype=torch.float64, device=DEVICE)
    labels = torch.tensor([0, 2, 1, 1, 0], device=DEVICE)
    expected = torch.log(torch.softmax(logits, 1) + 1e-8)[torch.arange(5, device=DEVICE), labels]
    torch.testing.assert_close(class_log_likelihood(logits, labels), expected)


VE = sde_lib.VESDE()
CLASSES = TwoGaussians(VE, means=((-0.8, -0.8), (0.8, 0.8)), std=0.5)


def test_the_guided_score_is_the_class_score():
    torch.manual_seed(0)
    # Nearby, where no class is so improbable that the 1e-8 shows.
    x, t = 0.5 * torch.randn(64, 2, device=DEVICE), 0.6 + 0.4 * torch.rand(64, device=DEVICE)
    labels = torch.randint(2, (64,), device=DEVICE)
    exact = -(x - x.new_tensor(CLASSES.means)[labels]) / (0.5**2 + VE.sigma(t)[:, None] ** 2)
    guided = GuidedScore(CLASSES.score, CLASSES.classifier, VE, labels)
    assert (guided(x, t) - exact).abs().max() < 1e-3 * exact.abs().max()
    # Another scale adds that many times the likelihood's score.
    prior = CLASSES.score(x, t)
    tenfold = GuidedScore(CLASSES.score, CLASSES.classifier, VE, labels, scale=10.0)
    assert (tenfold(x, t) - prior - 10 * (exact - prior)).abs().max() < 1e-2 * exact.abs().max()


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "sampler",
    [pc_sampler(VE, "reverse_diffusion", "none", snr=0.1), sampling.ODESampler(VE, 1e-5, 1e-5)],
    ids=["pc", "ode"],
)
def test_guidance_by_the_exact_classifier_draws_the_class(sampler, label):
    torch.manual_seed(0)
    labels = torch.tensor([label], device=DEVICE)
    guided = GuidedScore(CLASSES.score, CLASSES.classifier, VE, labels)
    samples, _ = sampler(guided, torch.randn(512, 2, device=DEVICE))
    check_moments(samples, CLASSES.means[label][0], CLASSES.std)
