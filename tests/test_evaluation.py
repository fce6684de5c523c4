"""FID, IS and class-wise metrics against torch-fidelity, formulas, and results known by hand."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

import evaluation
from metrics import frechet, inception_score, prdc
from studies.metrics_parity import (
    correlated_features,
    random_logits,
    real_and_fake,
    torch_fidelity_fid_and_is,
)
from utils import UserError

prdc_metrics = prdc.precision_recall_density_coverage
GOOD = correlated_features(1, 50, 8)


@pytest.mark.parametrize(
    ("real_count", "fake_count", "width"), [(2000, 2500, 256), (300, 500, 768), (2000, 40, 64)]
)
def test_fid_equals_torch_fidelity(real_count, fake_count, width):
    real, fake = real_and_fake(real_count, fake_count, width)
    theirs = torch_fidelity_fid_and_is(real, fake, random_logits(3, 50, 10))
    assert frechet.frechet_distance(real, fake) == pytest.approx(theirs["fid"], rel=1e-3)


@pytest.mark.parametrize(("count", "width"), [(1500, 128), (2, 2048)])
def test_fid_of_a_set_with_itself_is_zero(count, width):
    features = correlated_features(1, count, width)
    assert frechet.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [400, 10_000])  # rank-deficient, and of more than two chunks
def test_fid_of_a_shifted_and_scaled_set(count):
    """For g = m + s (r − mean r) + δ: |δ|² + (1 − s)² tr Σ_r."""
    real = np.random.default_rng(0).normal(3, 1, (count, 600)) @ np.diag(0.99 ** np.arange(600))
    scale, shift = 0.7, np.linspace(0, 0.2, 600)
    fake = real.mean(0) + scale * (real - real.mean(0)) + shift
    expected = np.square(shift).sum() + (1 - scale) ** 2 * real.var(0, ddof=1).sum()
    assert frechet.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-10)


def test_constant_features_have_the_distance_of_their_means():
    real, fake = np.full((20, 30), 2.0), np.full((10, 30), 2.5)
    assert frechet.frechet_distance(real, fake) == pytest.approx(30 * 0.25)


def tfgan_formula(logits):
    """exp mean KL(p(y|x) ‖ p(y)), term by term."""
    p, log_p = softmax(logits.astype(np.float64), axis=1), log_softmax(logits, axis=1)
    return np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean())


@pytest.mark.parametrize(("count", "classes"), [(2000, 1008), (10_000, 10), (3, 7)])
def test_inception_score_is_the_formula_over_the_whole_set(count, classes):
    logits = random_logits(0, count, classes)
    ours = inception_score.inception_score(logits)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=1)[KEY_METRIC_ISC_MEAN]
    assert ours == pytest.approx(tfgan_formula(logits), rel=1e-4)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_inception_score_of_certain_and_of_equal_predictions():
    certain = 1e5 * np.eye(12)[np.arange(240) % 12]
    assert inception_score.inception_score(certain) == pytest.approx(12)
    assert inception_score.inception_score(np.zeros((5, 4))) == pytest.approx(1)


def spoilt(value):
    features = GOOD.astype(np.float64)
    features[17, 3] = value
    return features


@pytest.mark.parametrize(
    ("real", "fake", "named"),
    [
        (spoilt(np.nan), GOOD, "real features"),
        (GOOD, spoilt(-np.inf), "generated features"),
        (GOOD, spoilt(1e180), "overflowing"),
        (GOOD, GOOD[:, :7], "wide"),
        (GOOD, GOOD[0], "shape"),
        (GOOD, GOOD[:1], "1 generated features"),
    ],
)
@pytest.mark.parametrize("metric", [frechet.frechet_distance, prdc_metrics])
def test_what_does_not_compare_is_refused(metric, real, fake, named):
    with pytest.raises(UserError, match=named):
        metric(real, fake)


def test_other_mistakes_are_refused():
    with pytest.raises(UserError, match="logits"):
        inception_score.inception_score(spoilt(np.nan))
    with pytest.raises(UserError, match="nearest_k"):
        prdc_metrics(GOOD, GOOD, nearest_k=0)


def test_classwise_is_the_metric_of_each_class_and_the_mean():
    real, fake = real_and_fake(90, 60, 8)
    rows = evaluation.classwise(prdc_metrics, [real, fake], [[20, 30, 40], [10, 20, 30]])
    assert list(rows) == ["0", "1", "2", "mean"]
    assert rows["1"] == prdc_metrics(real[20:50], fake[10:30])
    assert rows["mean"]["density"] == pytest.approx(
        sum(rows[label]["density"] for label in "012") / 3
    )


def test_classwise_names_the_class_that_is_too_small():
    with pytest.raises(UserError, match="Class 2: There are 2 real"):
        evaluation.classwise(prdc_metrics, [GOOD, GOOD], [[20, 28, 2]] * 2)
    with pytest.raises(UserError, match="3, 2 classes"):
        evaluation.classwise(prdc_metrics, [GOOD, GOOD], [[20, 28, 2], [20, 30]])


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_gan") is not None, reason="TF-GAN is installed here"
)
def test_without_tfgan_its_backend_says_what_it_needs():
    with pytest.raises(UserError, match=r"requirements-tfgan\.txt"):
        evaluation.tfgan_fid_and_is(GOOD, GOOD, GOOD)
