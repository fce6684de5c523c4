"""Images that are not square, have no labels, or no test split: through training and evaluation."""

import numpy as np
import pytest
import tiny
import torch
from raw_data import random_images
from test_image_folder import save

import models
import report
import run_lib
import run_lib_likelihood
import run_lib_sampling
from storage.files import load_npz
from storage.workdir import Workdir
from utils import UserError

HEIGHT, WIDTH = 8, 12


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder `photos` of images of 12×8 pixels without classes, in `train` alone."""
    monkeypatch.chdir(tmp_path)
    for i in range(20):
        save(tmp_path / "photos" / "train" / f"{i:02}.png", random_images(HEIGHT, WIDTH, 3, seed=i))
    return tmp_path


def config(**more):
    """A tiny run on the folder, with attention and two resolutions."""
    return tiny.config(
        "cache",
        data__dataset="folder",
        data__root="photos",
        data__num_channels=3,
        data__image_size=HEIGHT,
        data__image_width=WIDTH,
        model__ch_mult=(1, 1),
        model__attn_resolutions=(4,),
        training__n_iters=2,
        eval__num_samples=3,
        eval__num_divisions=1,
        eval__noise_levels=2,
        training__eval_freq=1,
        training__snapshot_sampling=True,
        **more,
    )


def test_the_whole_way_without_a_test_split(here):
    run_lib.train(config(), "run")
    place = Workdir("run")
    assert "folder has no test split: nothing is validated." in place.log_file.read_text()
    assert np.load(place.snapshot_samples(2) / "sample.np").shape == (4, HEIGHT, WIDTH, 3)

    run_lib_sampling.sample(config(), "run")
    drawn = load_npz(place.division(0, "") / "samples_0.npz", "samples")["samples"]
    assert (drawn.dtype, drawn.shape) == (np.uint8, (3, HEIGHT, WIDTH, 3))
    report.report(["run"])

    for calculate in (run_lib_likelihood.calculate_nll, run_lib_likelihood.calculate_asym):
        with pytest.raises(UserError, match="photos/test"):
            calculate(config(), "run")
    save(here / "photos" / "test" / "x.png", random_images(HEIGHT, WIDTH, 3, seed=50))
    for calculate in (run_lib_likelihood.calculate_nll, run_lib_likelihood.calculate_asym):
        calculate(config(), "run")
    assert np.isfinite(run_lib_likelihood.read_nll("run")["bits_per_dim"])


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8)])
def test_the_network_takes_any_form(height, width):
    settings = config()
    settings.data.image_size, settings.data.image_width = height, width
    x = torch.rand(2, 3, height, width)
    assert models.create_model(settings).eval()(x, torch.ones(2)).shape == x.shape


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("data.image_width", 13, "data.image_width"),
        ("model.name", "ncsnpp_mod", "data.image_size"),
        ("data.image_width", 0, "data.image_width"),
    ],
)
def test_a_form_that_does_not_fit_has_its_sentence(here, field, value, named):
    settings = config()
    settings.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=named):
        run_lib.train(settings, "run")
