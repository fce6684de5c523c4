"""The metrics against torch-fidelity, prdc, TF-GAN's formula, and results known by hand."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

import evaluation
from metrics import classwise, frechet, inception_score, prdc
from studies.metrics_parity import (
    correlated_features,
    random_logits,
    real_and_fake,
    torch_fidelity_fid_and_is,
)
from utils import UserError

prdc_metrics = prdc.precision_recall_density_coverage


# ---------------------------------------------------------------- FID


@pytest.mark.parametrize(
    ("real_count", "fake_count", "width"),
    [(2000, 2500, 256), (3000, 2000, 512), (300, 500, 768), (2000, 40, 64)],
)
def test_fid_equals_torch_fidelity(real_count, fake_count, width):
    real, fake = real_and_fake(real_count, fake_count, width)
    theirs = torch_fidelity_fid_and_is(real, fake, random_logits(3, 50, 10))
    assert frechet.frechet_distance(real, fake) == pytest.approx(theirs["fid"], rel=1e-3)


@pytest.mark.parametrize(("count", "width"), [(1500, 128), (500, 2048), (2, 2048), (5000, 8)])
def test_fid_of_a_set_with_itself_is_zero(count, width):
    features = correlated_features(1, count, width)
    assert frechet.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    shuffled = features[np.random.default_rng(0).permutation(count)]
    assert frechet.frechet_distance(features, shuffled) == pytest.approx(0, abs=1e-3)


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


# ---------------------------------------------------------------- Inception score


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
    assert inception_score.inception_score(certain[::12]) == pytest.approx(1)
    assert inception_score.inception_score(np.zeros((5, 4))) == pytest.approx(1)


# ---------------------------------------------------------------- sentences, never a NaN


def spoilt(value):
    features = correlated_features(1, 50, 8)
    features[17, 3] = value
    return features


GOOD = correlated_features(1, 50, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", [frechet.frechet_distance, prdc_metrics])
def test_values_that_are_not_finite_are_refused(metric, bad):
    with pytest.raises(UserError, match="real features hold NaN"):
        metric(spoilt(bad), GOOD)
    with pytest.raises(UserError, match="generated features hold NaN"):
        metric(GOOD, spoilt(bad))
    with pytest.raises(UserError, match="logits hold NaN"):
        inception_score.inception_score(spoilt(bad))


def test_values_whose_squares_overflow_are_refused():
    with pytest.raises(UserError, match="overflowing"):
        frechet.frechet_distance(GOOD, spoilt(1e30).astype(np.float64) * 1e150)


@pytest.mark.parametrize("metric", [frechet.frechet_distance, prdc_metrics])
def test_unequal_widths_are_refused(metric):
    with pytest.raises(UserError, match="8 wide, the generated ones 7"):
        metric(GOOD, GOOD[:, :7])
    with pytest.raises(UserError, match=r"expected \(samples, width\)"):
        metric(GOOD, GOOD[0])


def test_too_few_samples_are_refused():
    with pytest.raises(UserError, match="1 generated features; this metric needs 2"):
        frechet.frechet_distance(GOOD, GOOD[:1])
    with pytest.raises(UserError, match="3 generated features; this metric needs 4"):
        prdc_metrics(GOOD, GOOD[:3], nearest_k=3)
    with pytest.raises(UserError, match="0 logits"):
        inception_score.inception_score(GOOD[:0])


def test_a_nearest_k_that_means_nothing_is_refused():
    with pytest.raises(UserError, match="nearest_k"):
        prdc_metrics(GOOD, GOOD, nearest_k=0)


# ---------------------------------------------------------------- per class, backends


def test_classwise_is_the_metric_of_each_class_and_the_mean():
    real, fake = real_and_fake(90, 60, 8)
    reals = classwise.split_by_class(real, [20, 30, 40])
    fakes = classwise.split_by_class(fake, [10, 20, 30])
    values, mean = classwise.classwise(prdc_metrics, reals, fakes)
    assert values[1] == prdc_metrics(real[20:50], fake[10:30])
    assert len(values) == 3
    assert mean["density"] == pytest.approx(sum(value["density"] for value in values) / 3)


def test_classwise_names_the_class_that_is_too_small():
    parts = classwise.split_by_class(GOOD, [20, 28, 2])
    with pytest.raises(UserError, match="Class 2: There are 2 real features"):
        classwise.classwise(prdc_metrics, parts, parts)
    with pytest.raises(UserError, match="3, 2 classes"):
        classwise.classwise(prdc_metrics, parts, parts[:2])


def test_class_sizes_must_add_up():
    with pytest.raises(UserError, match="49 samples together, but there are 50"):
        classwise.split_by_class(GOOD, [20, 29])


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_gan") is not None, reason="TF-GAN is installed here"
)
def test_without_tfgan_its_backend_says_what_it_needs():
    with pytest.raises(UserError, match=r"requirements-tfgan\.txt"):
        evaluation.tfgan_fid_and_is(GOOD, GOOD, GOOD)
