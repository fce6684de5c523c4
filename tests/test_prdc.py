"""Precision, recall, density and coverage against `prdc`, and results known by hand."""

import numpy as np
import pytest
from prdc import compute_prdc
from random_features import correlated_features, real_and_fake

from metrics import prdc

prdc_metrics = prdc.precision_recall_density_coverage


def check_equals_prdc(real, fake, nearest_k=3):
    ours = prdc_metrics(real, fake, nearest_k)
    assert ours == pytest.approx(compute_prdc(real, fake, nearest_k), rel=1e-12)
    return ours


@pytest.mark.parametrize(
    ("real_count", "fake_count", "width", "block", "nearest_k"),
    [(1500, 2000, 256, 2048, 3), (701, 503, 40, 64, 1), (300, 90, 2048, 71, 5)],
)
def test_prdc_equals_prdc(real_count, fake_count, width, block, nearest_k, monkeypatch):
    monkeypatch.setattr(prdc, "BLOCK", block)
    real, fake = real_and_fake(real_count, fake_count, width)
    ours = check_equals_prdc(real, fake, nearest_k)
    assert 0 < ours["precision"] < 1
    assert 0 < ours["recall"] < 1


def test_prdc_equals_prdc_with_ties(monkeypatch):
    """On whole numbers many distances are equal, some are 0, and the comparison is a strict one."""
    monkeypatch.setattr(prdc, "BLOCK", 100)
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 3, (count, 12)).astype(np.float32) for count in (800, 650))
    real[:20] = real[20]
    check_equals_prdc(real, fake)


def test_prdc_equals_prdc_far_from_the_origin():
    """|a|² + |b|² − 2ab cancels six digits here, which float32 would not have."""
    real, fake = (100 + 0.1 * x for x in real_and_fake(400, 300, 128))
    assert 0 < check_equals_prdc(real, fake)["recall"] < 1


def test_prdc_of_a_generator_that_returns_the_data(monkeypatch):
    """Each sample lies in its own sphere and those of k − 1 neighbours; at the k-th it ties."""
    monkeypatch.setattr(prdc, "BLOCK", 128)
    real = correlated_features(1, 900, 200)
    shuffled = real[np.random.default_rng(0).permutation(900)]
    ours = check_equals_prdc(real, shuffled)
    assert ours == {"precision": 1, "recall": 1, "density": pytest.approx(1), "coverage": 1}


@pytest.mark.parametrize(("count", "width", "block"), [(60, 2048, 2048), (30, 8, 7)])
def test_the_density_of_a_set_in_itself(count, width, block, monkeypatch):
    """Within a radius lie k samples, the k-th neighbour itself not; of pairs the k-th ties, too."""
    monkeypatch.setattr(prdc, "BLOCK", block)
    x = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    pairs = np.repeat(x, 2, axis=0)
    assert prdc_metrics(x, x)["density"] == pytest.approx(1)
    assert prdc_metrics(pairs, pairs)["density"] == pytest.approx(2 / 3)


def test_prdc_on_a_line_by_hand():
    """Radii to the nearest neighbour: real 1, 1, 2; generated 0.75, 0.75, 8.25."""
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [1.25], [9.5]])
    assert prdc_metrics(real, fake, nearest_k=1) == pytest.approx(
        # 0.5 lies in two spheres, 1.25 in those of 1 and 3, 9.5 in none; 0 and 1 are recalled by
        # 0.5 and 3 by 9.5; every real sphere holds a generated sample.
        {"precision": 2 / 3, "recall": 1, "density": 4 / 3, "coverage": 1}
    )


def test_prdc_of_a_collapsed_generator():
    """Copies of one sample have spheres of radius 0, exactly, so nothing is recalled."""
    real = correlated_features(1, 300, 512)
    fake = np.repeat(real[:1], 200, axis=0)
    values = prdc_metrics(real, fake)
    assert values["recall"] == 0
    assert values["precision"] == 1
    assert prdc_metrics(fake, fake) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
