"""Feature files of other programs: measured, or refused with a sentence."""

import numpy as np
import pytest
import tiny

import evaluation
from metrics import feature_sets, inception_score
from storage.files import save_npz, to_json
from storage.workdir import Workdir
from utils import UserError

RNG = np.random.default_rng(0)
POOL, LOGITS = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 4))


def measure(tmp_path, monkeypatch, real, pool, logits):
    monkeypatch.chdir(tmp_path)
    config, place = tiny.config(tmp_path / "cache"), Workdir("run")
    meta = to_json({"features": "f", "samples": {}})
    save_npz(place.dataset_stat(""), pool_3=real, logit=LOGITS, meta=meta)
    save_npz(place.generated_stat(""), pool_3=pool, logit=logits, meta=meta)
    sets = feature_sets.open_sets(config, place.name)
    evaluation.measure(evaluation.SAMPLE_METRICS[:1], config, *sets, place=place)
    return place.recorded()["fid_is"]


def test_features_of_another_program_are_measured(tmp_path, monkeypatch):
    found = measure(tmp_path, monkeypatch, POOL, POOL, LOGITS)
    assert found["is"] == inception_score.inception_score(LOGITS)


@pytest.mark.parametrize(
    ("real", "pool", "logits"),
    [
        (POOL, POOL[:, :2], LOGITS),  # of another network
        (POOL, POOL[0], LOGITS),
        (POOL[:1], POOL, LOGITS),  # no covariance
        (POOL.astype("U5"), POOL, LOGITS),
        (POOL, np.where(POOL > 1, np.nan, POOL), LOGITS),
    ],
)
def test_features_that_do_not_fit_get_a_sentence(tmp_path, monkeypatch, real, pool, logits):
    with pytest.raises(UserError, match=r"features|_stat"):
        measure(tmp_path, monkeypatch, real, pool, logits)
