"""The papers' small experiments: the published rows, and each formula against a direct one."""

import pytest

from experiments import autoencoder, gaussian

# ε, steps, NAsym and Asym with the rotating error, steps with the other.
GAUSSIAN = [
    (0.0, 1, 0.0, 0.0, 1),
    (5e-4, 4, 4.41e-7, 1.77e-2, 2),
    (7.5e-4, 5, 6.60e-7, 2.65e-2, 3),
    (1e-3, 6, 8.78e-7, 3.53e-2, 3),
    (1.5e-3, 57, 1.31e-6, 5.28e-2, 4),
    (1.75e-3, 121, 1.53e-6, 6.15e-2, 5),
    (2.25e-3, 238, 1.96e-6, 7.89e-2, 16),
]


@pytest.mark.parametrize("row", GAUSSIAN, ids=lambda row: f"{row[0]:g}")
def test_gaussian_gives_the_published_table(row):
    epsilon, usbm_steps, nasym, asym, csbm_steps = row
    found = gaussian.measure(epsilon)
    assert (found["usbm_steps"], found["csbm_steps"]) == (usbm_steps, csbm_steps)
    assert float(f"{found['usbm_nasym']:.2e}") == nasym
    assert float(f"{found['usbm_asym']:.2e}") == asym


def test_autoencoder_gives_the_published_rows():
    first, last = autoencoder.train(seed=8, steps=1001, every=1000)
    assert first == pytest.approx((0, 2.625e-1, 0.8350, 0.9987), rel=0.01)
    assert last == pytest.approx((1000, 7.108e-2, 0.4268, 0.9246), rel=0.01)
