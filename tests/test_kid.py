"""KID against torch-fidelity, and against moments known in closed form."""

import numpy as np
import pytest
import torch
from random_features import real_and_fake
from torch_fidelity import metric_kid

from metrics import kid


@pytest.mark.parametrize(
    ("real_count", "fake_count", "width", "subset_size"),
    [(150, 120, 64, 120), (300, 500, 256, 100), (40, 30, 2048, 30)],
)
def test_kid_equals_torch_fidelity(real_count, fake_count, width, subset_size):
    real, fake = real_and_fake(real_count, fake_count, width)
    fake = 1.5 * fake
    theirs = metric_kid.kid_features_to_metric(
        *map(torch.from_numpy, (fake, real)),
        kid_subsets=kid.SUBSETS,
        kid_subset_size=subset_size,
        verbose=False,
    )
    ours = kid.kernel_inception_distance(real, fake, subset_size)
    assert ours["kid_subset_size"] == subset_size
    assert ours["kid"] == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-3)
    assert ours["kid_std"] == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-3)
    assert ours["kid"] > 1e-3


def test_kid_of_gaussians_on_a_line():
    """There the kernel's mean is a polynomial of moments: MMD² = 3Δ₁² + 3Δ₂² + Δ₃²."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(20_000, 1)), rng.normal(0.5, size=(20_000, 1))
    found = kid.kernel_inception_distance(real, fake, subset_size=500)
    expected = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    assert found["kid"] == pytest.approx(expected, rel=0.1)
