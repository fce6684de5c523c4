"""Precision, recall, density and coverage against `prdc`, and results known by hand."""

import numpy as np
import pytest
import torch

import evaluation
from metrics import neighbours, prdc
from studies.metrics_parity import correlated_features, real_and_fake

prdc_metrics = prdc.precision_recall_density_coverage


def counts(values, real_count, fake_count, nearest_k):
    """The four metrics as the numbers of samples that they are fractions of."""
    per = {"precision": fake_count, "recall": real_count, "coverage": real_count}
    per["density"] = nearest_k * fake_count
    return {name: round(value * per[name], 6) for name, value in values.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("real_count", "fake_count", "width", "block_bytes", "nearest_k"),
    [
        (1500, 2000, 256, 2**26, 3),
        (701, 503, 40, 2**18, 1),
        (300, 90, 2048, 2**20, 5),
        (150, 120, 100, 2**13, 3),
    ],
)
def test_prdc_equals_prdc(real_count, fake_count, width, block_bytes, dtype, nearest_k):
    real, fake = (x.astype(dtype) for x in real_and_fake(real_count, fake_count, width))
    ours = prdc_metrics(real, fake, nearest_k, block_bytes)
    theirs = prdc.prdc_package(real, fake, nearest_k)
    sizes = real_count, fake_count, nearest_k
    assert counts(ours, *sizes) == counts(theirs, *sizes)
    assert 0 < ours["precision"] < 1
    assert 0 < ours["recall"] < 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prdc_equals_prdc_where_distances_tie(dtype):
    """On whole numbers many distances are equal, some are 0, and the comparison is a strict one."""
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 3, (count, 12)).astype(dtype) for count in (800, 650))
    real[:20] = real[20]
    ours = prdc_metrics(real, fake, block_bytes=2**16)
    assert counts(ours, 800, 650, 3) == counts(prdc.prdc_package(real, fake), 800, 650, 3)


def test_prdc_equals_prdc_far_from_the_origin():
    """|a|² + |b|² − 2ab cancels six digits here, which float32 would not have."""
    real, fake = (100 + 0.1 * x for x in real_and_fake(400, 300, 128))
    ours, theirs = prdc_metrics(real, fake), prdc.prdc_package(real, fake)
    assert counts(ours, 400, 300, 3) == counts(theirs, 400, 300, 3)
    assert 0 < ours["recall"] < 1


def test_prdc_of_a_generator_that_returns_the_data():
    """Each sample lies in its own sphere and those of k − 1 neighbours; at the k-th it ties."""
    real = correlated_features(1, 900, 200)
    shuffled = real[np.random.default_rng(0).permutation(900)]
    ours = prdc_metrics(real, shuffled, block_bytes=2**18)
    theirs = prdc.prdc_package(real, shuffled)
    assert counts(ours, 900, 900, 3) == counts(theirs, 900, 900, 3)
    assert ours == {"precision": 1, "recall": 1, "density": pytest.approx(1), "coverage": 1}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "width", "block_bytes"), [(60, 2048, 2**28), (30, 8, 2**13)])
def test_the_density_of_a_set_in_itself(count, width, block_bytes, dtype):
    """Within a radius lie k samples, the k-th neighbour itself not; of pairs the k-th ties, too."""
    x = np.random.default_rng(0).normal(size=(count, width)).astype(dtype)
    pairs = np.repeat(x, 2, axis=0)
    assert prdc_metrics(x, x, block_bytes=block_bytes)["density"] == pytest.approx(1)
    assert prdc_metrics(pairs, pairs, block_bytes=block_bytes)["density"] == pytest.approx(2 / 3)


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
    values = prdc_metrics(real, fake, block_bytes=2**18)
    assert values["recall"] == 0
    assert values["precision"] == 1
    assert prdc_metrics(fake, fake) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_memory_maps_and_tensors_are_taken_as_they_are(tmp_path):
    real, fake = real_and_fake(200, 150, 32)
    np.save(tmp_path / "real.npy", real)
    mapped, tensor = np.load(tmp_path / "real.npy", mmap_mode="r"), torch.from_numpy(fake)
    assert prdc_metrics(mapped, tensor) == prdc_metrics(real, fake)
    logits = tensor[:, :10]
    assert evaluation.fid_and_is(mapped, tensor, logits) == evaluation.fid_and_is(
        real, fake, fake[:, :10]
    )


@pytest.mark.parametrize("width", [1, 128, 2048])
@pytest.mark.parametrize("block_bytes", [2**16, 2**26, 2**30])
def test_a_block_is_the_largest_that_fits(width, block_bytes):
    def needed(side):
        return 2 * 8 * side * width + 48 * side**2

    side = neighbours.block_side(width, block_bytes)
    assert needed(side) <= block_bytes < needed(side + 1)
