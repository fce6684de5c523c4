"""Pixels and the model's range; points; what a configuration's domain is, and what it refuses."""

import ml_collections
import numpy as np
import pytest
import torch

import domains

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)


def domain(**options):
    """Images of 3 channels and 4×4 pixels."""
    return domains.Images(3, 4, 4, **options)


def test_to_model_range():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    plain = domain().to_model(images, train=True)
    centered = domain(centered=True).to_model(images, train=True)
    exact = torch.linspace(0, 1, 256, dtype=torch.float64).reshape(1, 1, 16, 16)
    assert plain.dtype == centered.dtype == torch.float32
    torch.testing.assert_close(plain.double(), exact, rtol=0, atol=1e-7)
    torch.testing.assert_close(centered.double(), 2 * exact - 1, rtol=0, atol=2e-7)


def test_half_of_the_training_images_are_flipped_left_to_right():
    data = domain(random_flip=True)
    image = torch.from_numpy(IMAGES[:1])
    images = image.expand(400, 3, 4, 4)
    torch.manual_seed(0)
    x = data.to_model(images, train=True)
    plain, mirrored = image / 255, image.flip(3) / 255
    is_plain = (x == plain).flatten(1).all(1)
    is_mirrored = (x == mirrored).flatten(1).all(1)
    assert torch.all(is_plain ^ is_mirrored)
    assert 140 < is_mirrored.sum() < 260  # six standard deviations about 200
    assert torch.equal(data.to_model(images, train=False), plain.expand_as(x))


def test_dequantization():
    """Each pixel is spread evenly over its own 256th of [0, 1), in training alone."""
    data = domain(uniform_dequantization=True)
    images = torch.from_numpy(IMAGES).repeat(50, 1, 1, 1)
    torch.manual_seed(0)
    x = data.to_model(images, train=True)
    within = x.double() * 256 - images
    assert within.min() > -1e-4
    assert within.max() < 1 + 1e-4
    assert abs(within.mean() - 0.5) < 6 * (1 / 12 / within.numel()) ** 0.5
    assert abs(within.var() - 1 / 12) < 0.005
    assert torch.equal(data.to_model(images, train=False), images / 255)
    centered = domain(uniform_dequantization=True, centered=True)
    torch.manual_seed(0)
    assert torch.equal(centered.to_model(images, train=True), 2 * x - 1)


def test_stored_images_are_clipped_and_truncated():
    x = torch.tensor([-3.0, 0.0, 0.9 / 255, 1.5 / 255, 254.9 / 255, 1.0, 7.0, 0.5])
    images = domain().to_stored(x.reshape(2, 1, 2, 2))
    assert (images.dtype, images.shape) == (np.uint8, (2, 2, 2, 1))
    assert images.ravel().tolist() == [0, 0, 0, 1, 254, 255, 255, 127]
    colours = torch.rand(2, 3, 4, 5)
    assert domain().to_stored(colours).shape == (2, 4, 5, 3)
    assert domain().to_stored(colours)[1, 2, 3, 0] == int(255 * colours[1, 0, 2, 3])


@pytest.mark.parametrize("centered", [False, True])
def test_pixels_survive_the_way_to_the_model_and_back(centered):
    """Every value returns; after centring, truncation may make it one less."""
    data = domain(centered=centered)
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    stored = data.to_stored(data.to_model(images, train=False))
    lost = images.numpy().ravel() - stored.ravel().astype(int)
    assert set(lost) <= ({0, 1} if centered else {0})


@pytest.mark.parametrize("centered", [False, True])
def test_the_share_of_values_outside_the_range(centered):
    """Black backgrounds with what noise a sampler leaves lie within; what exploded does not."""
    data = domain(centered=centered)
    black = data.scaler(torch.zeros(5, 1, 8, 8) + 0.03 * torch.randn(5, 1, 8, 8))
    assert data.share_outside(black) < 0.05
    assert data.share_outside(data.scaler(torch.ones(5, 1, 8, 8))) == 0
    x = torch.tensor([-0.2, 1.2, 0.5, 50.0]).reshape(1, 1, 2, 2)
    assert data.share_outside(data.scaler(x)) == 0.75
    assert domains.Points(2).share_outside(50 * torch.ones(3, 2)) == 0


# ---------------------------------------------------------------- points


def test_a_picture_of_images_is_a_grid():
    stored = IMAGES.transpose(0, 2, 3, 1)
    assert domains.of_stored(stored) == domain()
    picture = domain().picture(stored, columns=5)
    assert picture.size == (8 * (5 * 5 + 1), 8 * (2 * 5 + 1))  # with a line between, enlarged
    wide = np.zeros((4, 8, 40, 1), np.uint8)
    assert domains.of_stored(wide).picture(wide).size == (4 * (2 * 41 + 1), 4 * (2 * 9 + 1))


# ---------------------------------------------------------------- configurations


def data(**fields):
    return ml_collections.ConfigDict({"dataset": "some", **fields})


def test_the_configuration_names_the_domain():
    assert domains.from_config(data(dimensions=2)) == domains.Points(2)
    square = data(num_channels=3, image_size=4, centered=True)
    assert domains.from_config(square) == domain(centered=True)
    wide = data(num_channels=1, image_size=4, image_width=6, random_flip=True)
    assert domains.from_config(wide) == domains.Images(1, 4, 6, random_flip=True)
    assert domains.from_config(wide).shape == (1, 4, 6)
    assert domains.from_config(wide).stored_shape == (4, 6, 1)
