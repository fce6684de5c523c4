"""Means and spreads over seeds of the small experiments (experiments/seeds.py)."""

import pytest
from scipy import stats

from experiments import seeds
from storage.workdir import Workdir
from utils import UserError

NLL = {"usbm": (5.0, 5.2, 5.3), "qcsbm": (4.9, 5.0, 5.2), "csbm": (6.0,)}


@pytest.fixture
def plane(tmp_path, monkeypatch):
    """Three seeds of U and QC, one of C, as `experiments.plane` records them."""
    monkeypatch.chdir(tmp_path)
    for model, values in NLL.items():
        for seed, nats in enumerate(values):
            place = Workdir(f"experiments/plane/{model}_{seed}")
            place.create()
            settings = {"experiment": "Plane", "model": model, "seed": seed, "batch": 2, "steps": 3}
            place.record(corrected={"nats": nats, "asym": 0.0, "settings": settings})


def test_runs_are_grouped_by_what_they_share(plane):
    ((settings, models),) = seeds.recorded("plane").items()
    assert dict(settings) == {"experiment": "Plane", "batch": 2, "steps": 3}
    assert {name: len(runs) for name, runs in models.items()} == {"usbm": 3, "qcsbm": 3, "csbm": 1}


def test_means_spreads_and_paired_differences(plane):
    (models,) = seeds.recorded("plane").values()
    heads, rows = seeds.table(models, "usbm")
    assert heads == ["", "usbm, 3 seeds", "qcsbm, 3 seeds", "qcsbm − usbm"]
    p = stats.ttest_rel(NLL["qcsbm"], NLL["usbm"]).pvalue
    assert rows[1] == ["nats", "5.167 ± 0.15", "5.033 ± 0.15", f"-0.1333 ± 0.058 (p = {p:.2g})"]
    assert rows[0] == ["asym", "0 ± 0", "0 ± 0", ""]  # no difference: nothing to be tested


def test_without_the_leading_model_nothing_is_compared(plane):
    (models,) = seeds.recorded("plane").values()
    heads, rows = seeds.table({"qcsbm": models["qcsbm"], "other": models["usbm"]}, "usbm")
    assert heads == ["", "other, 3 seeds", "qcsbm, 3 seeds"]
    assert {len(row) for row in rows} == {3}


def test_differences_that_are_all_alike_have_no_test():
    first, other = ({seed: {"nfe": nfe} for seed in range(2)} for nfe in (27.0, 33.0))
    assert seeds.difference(first, other, "nfe") == "6 ± 0"


def test_without_results_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run python -m experiments\.moons first"):
        seeds.recorded("moons")
