"""FID, Inception score and TF-Hub features beside TF-GAN itself.

TF-GAN imports only in the environment of ``requirements-tfgan.txt``; elsewhere this is skipped.
"""

import numpy as np
import pytest

import evaluation
import features
from benchmarks.parity_metrics import random_logits, real_and_fake
from utils import UserError

pytest.importorskip("tensorflow_gan", reason="TF-GAN needs requirements-tfgan.txt's environment")
tf = pytest.importorskip("tensorflow")


@pytest.mark.parametrize(
    ("real_count", "fake_count", "width"),
    [(2000, 2500, 256), (3000, 2000, 384), (200, 300, 512), (2000, 40, 64)],
)
def test_fid_equals_tfgan(real_count, fake_count, width):
    real, fake = real_and_fake(real_count, fake_count, width)
    logits = random_logits(3, fake_count, 100)
    ours = evaluation.fid_and_is(real, fake, logits)
    theirs = evaluation.tfgan_fid_and_is(real, fake, logits)
    assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-3)
    assert ours["is"] == pytest.approx(theirs["is"], rel=1e-4)


@pytest.mark.parametrize(("count", "classes"), [(5000, 1008), (10_000, 10), (50, 1008)])
def test_inception_score_equals_tfgan(count, classes):
    import tensorflow_gan as tfgan

    logits = random_logits(0, count, classes)
    theirs = float(tfgan.eval.classifier_score_from_logits(logits))
    assert evaluation.inception_score(logits) == pytest.approx(theirs, rel=1e-4)


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
def test_tfhub_features_stream_through_a_module(tmp_path, channels):
    tf.saved_model.save(MeansModule(), str(tmp_path))
    extractor = features.TFHubFeatures(str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), dtype=np.uint8)
    pool, logits = features.extract(extractor, [images[:3], images[3:]], count=5)
    expected = images.mean(axis=(1, 2, 3), dtype=np.float64)[:, None] / 127.5 - 1
    np.testing.assert_allclose(pool, np.repeat(expected, 2048, axis=1), atol=1e-5)
    np.testing.assert_allclose(logits, np.repeat(expected + 1, 1008, axis=1), atol=1e-5)
    assert extractor.name == f"tfhub-{tmp_path}"


def test_a_module_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent cannot be loaded"):
        features.TFHubFeatures(str(tmp_path / "absent"))
