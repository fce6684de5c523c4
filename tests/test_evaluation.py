"""FID, IS and class-wise metrics against torch-fidelity, formulas, and results known by hand."""

import pathlib

import ml_collections
import numpy as np
import pytest
import torch
from random_features import correlated_features, random_logits, real_and_fake
from torch_fidelity import metric_fid
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

import evaluation
from metrics import frechet, inception_score, prdc
from metrics.feature_sets import FeatureSet
from storage.workdir import Workdir
from utils import UserError

prdc_metrics = prdc.precision_recall_density_coverage
GOOD = correlated_features(1, 50, 8)


@pytest.mark.parametrize(
    ("real_count", "fake_count", "width"), [(2000, 2500, 256), (300, 500, 768), (2000, 40, 64)]
)
def test_fid_equals_torch_fidelity(real_count, fake_count, width):
    real, fake = real_and_fake(real_count, fake_count, width)
    sets = (metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake))
    theirs = metric_fid.fid_statistics_to_metric(*sets, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert frechet.frechet_distance(real, fake) == pytest.approx(theirs, rel=1e-5)


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


@pytest.mark.parametrize(("count", "classes"), [(2000, 1008), (10_000, 10), (3, 7)])
def test_inception_score_equals_torch_fidelity(count, classes):
    logits = random_logits(0, count, classes)
    ours = inception_score.inception_score(logits)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=1)[KEY_METRIC_ISC_MEAN]
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
    ("real", "fake"),
    [
        (spoilt(np.nan), GOOD),
        (GOOD, spoilt(-np.inf)),
        (GOOD, spoilt(1e180)),  # its square overflows
        (GOOD, GOOD[:, :7]),
        (GOOD, GOOD[0]),
        (GOOD, GOOD[:1]),
    ],
)
@pytest.mark.parametrize("metric", [frechet.frechet_distance, prdc_metrics])
def test_what_does_not_compare_is_refused(metric, real, fake):
    with pytest.raises(UserError):
        metric(real, fake)


CONFIG = ml_collections.ConfigDict({"eval": {"nearest_k": 3}, "device": "cpu"})
(PRDC,) = (metric for metric in evaluation.SAMPLE_METRICS if metric.name == "prdc")


def features(pool, sizes):
    return FeatureSet(pool, None, ("a network",), {}, pathlib.Path("here"), sizes)


def test_classwise_is_the_metric_of_each_class_and_the_mean():
    real, fake = real_and_fake(90, 60, 8)
    sets = features(real, [20, 30, 40]), features(fake, [10, 20, 30])
    rows = evaluation.classwise(PRDC, *sets, CONFIG)
    assert list(rows) == ["0", "1", "2", "mean"]
    assert rows["1"] == prdc_metrics(real[20:50], fake[10:30])
    assert rows["mean"]["density"] == pytest.approx(
        sum(rows[label]["density"] for label in "012") / 3
    )


def test_classwise_names_the_class_that_is_too_small():
    small = features(GOOD, [20, 28, 2])
    with pytest.raises(UserError, match="Class 2"):
        evaluation.classwise(PRDC, small, small, CONFIG)
    with pytest.raises(UserError, match="classes"):
        evaluation.classwise(PRDC, small, features(GOOD, [20, 30]), CONFIG)


def test_features_of_different_networks_do_not_compare(tmp_path):
    real = features(GOOD, None)
    other = FeatureSet(GOOD, None, ("another network",), {}, pathlib.Path("there"))
    with pytest.raises(UserError, match="another network"):
        evaluation.measure([PRDC], CONFIG, real, other, Workdir(tmp_path))


@pytest.mark.parametrize("values", [{"distance": float("nan")}, {"distanse": 1.0}])
def test_values_of_a_metric_that_cannot_be_are_refused(tmp_path, values):
    metric = evaluation.SampleMetric("mine", "mine", "", {"distance": ""}, lambda *_: values)
    same = features(GOOD, [20, 30])
    for mode in ("full", "class"):
        with pytest.raises(UserError, match=r"mine.*distan"):
            evaluation.measure([metric], CONFIG, same, same, Workdir(tmp_path), mode)
