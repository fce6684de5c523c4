"""KID against its formula, and against moments known in closed form."""

import numpy as np
import pytest
from random_features import real_and_fake

from metrics import kid


def test_kid_of_whole_sets_is_the_formula():
    real, fake = real_and_fake(40, 40, 16)
    x, y = 1.5 * fake.astype(np.float64), real.astype(np.float64)
    kernel = [(a @ b.T / 16 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = sum(k.sum() - np.trace(k) for k in kernel[:2]) / (40 * 39)
    found = kid.kernel_inception_distance(y, x, subset_size=100)
    assert found["kid_subset_size"] == 40
    assert found["kid"] == pytest.approx(within - 2 * kernel[2].mean())
    assert found["kid_std"] == pytest.approx(0, abs=1e-9)


def test_kid_of_gaussians_on_a_line():
    """There the kernel's mean is a polynomial of moments: MMD² = 3Δ₁² + 3Δ₂² + Δ₃²."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(20_000, 1)), rng.normal(0.5, size=(20_000, 1))
    found = kid.kernel_inception_distance(real, fake, subset_size=500)
    expected = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    assert found["kid"] == pytest.approx(expected, rel=0.1)
