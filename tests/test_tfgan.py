"""FID, Inception score and TF-Hub features beside TF-GAN itself.

TF-GAN imports only in the environment of ``requirements-tfgan.txt``; elsewhere this is skipped.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from random_features import random_logits, real_and_fake

from metrics import extractors
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from storage.files import save_npz

tfgan = pytest.importorskip(
    "tensorflow_gan", reason="TF-GAN needs requirements-tfgan.txt's environment"
)
tf = pytest.importorskip("tensorflow")


def tfgan_fid(real, fake):
    return float(tfgan.eval.frechet_classifier_distance_from_activations(real, fake))


def tfgan_inception_score(logits):
    return float(tfgan.eval.classifier_score_from_logits(logits))


@pytest.mark.parametrize(
    ("real_count", "fake_count", "width"),
    [(2000, 2500, 256), (3000, 2000, 384), (200, 300, 512), (2000, 40, 64)],
)
def test_fid_equals_tfgan(real_count, fake_count, width):
    real, fake = real_and_fake(real_count, fake_count, width)
    assert frechet_distance(real, fake) == pytest.approx(tfgan_fid(real, fake), rel=1e-6)


def test_inception_score_equals_tfgan():
    logits = random_logits(3, 2000, 100)
    assert inception_score(logits) == pytest.approx(tfgan_inception_score(logits), rel=1e-6)


class MeansModule(tf.Module):
    """A module with the outputs of TF-GAN's: the images' mean, plus 1 in the logits."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    def __call__(self, images):
        means = tf.reduce_mean(images, axis=[1, 2, 3])[:, None, None, None]
        return {
            "pool_3": tf.tile(means, [1, 1, 1, 2048]),
            "logits": tf.tile(means[:, 0, 0] + 1, [1, 1008]),
        }


@pytest.mark.parametrize("channels", [1, 3])
def test_tfhub_features_stream_through_a_module(tmp_path, channels, monkeypatch):
    tf.saved_model.save(MeansModule(), str(tmp_path))
    monkeypatch.setattr(extractors, "TFHUB_INCEPTION", str(tmp_path))
    extractor = extractors.TFHubFeatures()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), dtype=np.uint8)
    pool, logits = extractors.encode(extractor, images, rows=2)
    expected = images.mean(axis=(1, 2, 3), dtype=np.float64)[:, None] / 127.5 - 1
    np.testing.assert_allclose(pool, np.repeat(expected, 2048, axis=1), atol=1e-5)
    np.testing.assert_allclose(logits, np.repeat(expected + 1, 1008, axis=1), atol=1e-5)


def test_the_command_runs(tmp_path):
    """FID and IS of feature files, in this environment."""
    real, fake = real_and_fake(300, 200, 64)
    logits = random_logits(3, 200, 100)
    stat = tmp_path / "results/W/stat"
    save_npz(stat / "dataset_stat.npz", pool_3=real)
    save_npz(stat / "generated_stat.npz", pool_3=fake, logit=logits)
    root = pathlib.Path(__file__).parent.parent
    config = root / "configs/qc_ncsn/evaluation/eval_cifar10_config.py"
    command = [sys.executable, root / "run_lib_evaluation_fidis.py", "--config", config]
    command += ["--workdir", "W", "--fidis"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results/W/metrics.json").read_text())["fid_is"]
    assert found["fid"] == pytest.approx(tfgan_fid(real, fake), rel=1e-6)
    assert found["is"] == pytest.approx(tfgan_inception_score(logits), rel=1e-6)
