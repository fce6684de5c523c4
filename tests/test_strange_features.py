"""Samples and features from strangers, through every command that compares them."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict
from strangers import reads
from test_strangers import arrays, metas

from evaluation import SAMPLE_METRICS
from metrics import feature_sets, inception_score, measuring
from storage.files import save_npz, to_json
from storage.workdir import Workdir

METRICS = {metric.name: metric for metric in SAMPLE_METRICS}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tiny configuration in a workdir of its own, of three samples in one division."""
    config = tiny.config(tmp_path_factory.mktemp("cache"))
    config.eval.num_samples, config.eval.num_divisions = 3, 1
    config.eval.num_samples_all = config.eval.kid_subset_size = 2
    return config


@pytest.fixture(scope="module")
def by_class(config):
    """The same with one class."""
    return ConfigDict({**config, "classifier": {"classes": 1}})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("strangers") / "run")


features_of_right_shape = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.uint8]),
    st.tuples(st.integers(1, 6), st.integers(1, 3)),
)
images_of_right_shape = hnp.arrays(np.uint8, st.tuples(st.integers(0, 4), *map(st.just, (8, 8, 1))))
stat_metas = metas | st.just(to_json({"features": "f", "samples": {}})) | st.fixed_dictionaries(
    {"features": st.none() | st.lists(st.integers(), max_size=2), "samples": st.none() | st.text()}
).map(to_json)  # fmt: skip


def check_finite(values):
    if values is not None:
        assert all(np.isfinite(value) for value in values.values())


@given(
    real=features_of_right_shape | arrays,
    pool=features_of_right_shape | arrays,
    logits=features_of_right_shape | arrays,
    meta=stat_metas,
    name=st.sampled_from(["fid_is", "kid", "prdc"]),
)
def test_feature_files_of_strangers(config, workdir, real, pool, logits, meta, name):
    place = Workdir(workdir)
    save_npz(place.dataset_stat(""), pool_3=real, logit=real)
    save_npz(place.generated_stat(""), pool_3=pool, logit=logits, meta=meta)

    def compare():
        sets = feature_sets.open_sets(config, workdir)
        return measuring.measure(METRICS[name], config, workdir, *sets)

    place.metrics.unlink(missing_ok=True)
    check_finite(reads("features", compare))


@given(samples=images_of_right_shape | arrays, nfe=arrays, meta=metas)
def test_samples_of_strangers(config, workdir, samples, nfe, meta):
    place = Workdir(workdir)
    save_npz(place.division(0, "") / "samples_0.npz", samples=samples, nfe=nfe, meta=meta)
    place.metrics.unlink(missing_ok=True)

    def measure():
        return {"nfe": measuring.nfe(config, workdir)}

    found = reads("samples", measure)
    check_finite(found)
    assert found is None or samples.shape == (3, 8, 8, 1)


@given(
    real=features_of_right_shape | arrays,
    size=hnp.arrays(np.int64, 1) | arrays | st.just(np.array([3])),
    pool=features_of_right_shape | arrays,
    logits=features_of_right_shape | arrays,
    meta=stat_metas,
)
def test_class_features_of_strangers(by_class, workdir, real, size, pool, logits, meta):
    place = Workdir(workdir)
    latents = place.latents(0, "") / "samples_0_latent.npz"
    save_npz(place.class_stat, pool_3=real, size=size, meta=meta)
    save_npz(latents, pool_3=pool, logits=logits, meta=meta)
    place.metrics.unlink(missing_ok=True)

    def compare():
        sets = feature_sets.open_sets(by_class, workdir)
        return measuring.measure(METRICS["fid_is"], by_class, workdir, *sets, mode="class")

    check_finite(reads("features", compare))


def test_what_is_right_is_measured(config, workdir):
    """So that the tests above do not pass because everything is refused."""
    rng = np.random.default_rng(0)
    place, meta = Workdir(workdir), to_json({"features": "f", "samples": {}})
    pool, logits = rng.normal(size=(6, 3)), rng.normal(size=(6, 4))
    save_npz(place.dataset_stat(""), pool_3=pool, logit=logits, meta=meta)
    save_npz(place.generated_stat(""), pool_3=pool, logit=logits, meta=meta)
    place.metrics.unlink(missing_ok=True)
    sets = feature_sets.open_sets(config, workdir)
    found = measuring.measure(METRICS["fid_is"], config, workdir, *sets)
    assert found["is"] == inception_score.inception_score(logits)
