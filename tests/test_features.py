"""extractors.py: the Inception path against torch-fidelity's own, and the data sets' classifier."""

import functools
import hashlib
import importlib.util
import pathlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import Inception3

from metrics import extractors, feature_classifier
from utils import UserError


def random_images(count, size, channels, seed=0):
    shape = count, size, size, channels
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file of the published one's layout with random values, biases that matter too."""
    torch.manual_seed(0)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for parameter in network.parameters():
        if parameter.ndim == 4:  # convolutions that keep the signal's size through the depth
            torch.nn.init.kaiming_normal_(parameter)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return extractors.inception("cpu", weights)


# ---------------------------------------------------------------- Inception


def test_inception_equals_torch_fidelity(weights, inception):
    images = random_images(5, 40, 3)
    names = ["2048", "logits_unbiased", "logits"]
    oracle = FeatureExtractorInceptionV3("", names, feature_extractor_weights_path=weights)
    expected = oracle(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    expected_pool, unbiased, biased = (tensor.numpy() for tensor in expected)
    pool, logits = extractors.encode(inception, images, rows=2)
    assert pool.std(axis=0).max() > 1e-4  # the images tell
    np.testing.assert_allclose(pool, expected_pool, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits, unbiased, rtol=1e-4, atol=1e-6)
    assert np.abs(logits - biased).max() > 1e-3


def test_inception_takes_grey_images_as_equal_channels(inception):
    grey = random_images(2, 28, 1)
    for ours, colour in zip(inception(grey), inception(grey.repeat(3, axis=-1)), strict=True):
        np.testing.assert_array_equal(ours, colour)


def test_the_name_tells_other_weights_apart(weights, inception, monkeypatch):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert inception.name == f"inception-{digest[:8]}"
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", digest)
    assert extractors.inception("cpu", weights).name == "inception-2015-12-05"


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_files_that_are_no_weights_are_refused(tmp_path):
    """And no code of theirs is run."""
    path = tmp_path / "weights.pth"
    contents = [{"fc.weight": RunsCode(tmp_path / "ran")}, {"fc.weight": torch.zeros(10, 10)}, None]
    for content in contents:
        torch.save(content, path) if content else path.write_bytes(b"nonsense")
        with pytest.raises(UserError, match=r"weights\.pth"):
            extractors.inception("cpu", path)
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- the download


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A stand-in for the published file, its address, and an empty cache."""
    (tmp_path / "published").mkdir()
    path = tmp_path / "published" / "weights.pth"
    path.write_bytes(b"the weights")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", digest)
    monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", path.as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    return path


def test_the_published_file_is_downloaded_once_and_no_other(published):
    content = published.read_bytes()
    published.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"eval\.inception_weights.*eval\.features"):
        extractors.download_inception_weights()
    assert not list((published.parent.parent / "cache").rglob("*.p*"))
    published.write_bytes(content)
    path = extractors.download_inception_weights()
    published.unlink()
    assert extractors.download_inception_weights() == path
    assert path.read_bytes() == content


# ---------------------------------------------------------------- a data set's own classifier


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[..., None] * 15.9).astype(np.uint8), data.target


def features_of(data, count, cache, steps):
    """Of a classifier of the first images, briefly trained."""
    with pytest.MonkeyPatch.context() as patch:
        quicker = functools.partial(feature_classifier.train_small_classifier, steps=steps)
        patch.setattr(feature_classifier, "train_small_classifier", quicker)
        first = [array[:count] for array in data]
        return feature_classifier.ClassifierFeatures("digits", *first, "cpu", cache)


@pytest.fixture(scope="module")
def classifier(digits, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "deeper" / "digits.pth"
    return features_of(digits, 1400, cache, steps=300), cache


def test_classifier_knows_its_data_set(classifier, digits):
    made, _ = classifier
    images, labels = digits
    pool, logits = extractors.encode(made, images[1400:], 100)
    assert pool.shape[1] == 128
    assert (logits.argmax(axis=1) == labels[1400:]).mean() > 0.93
    assert made.name.startswith("classifier-digits-")


def test_classifier_comes_back_from_its_cache(classifier, digits, monkeypatch):
    made, cache = classifier
    images = digits[0]
    monkeypatch.setattr(torch.optim.Adam, "step", None)
    again = features_of(digits, 1400, cache, steps=300)
    assert again.name == made.name
    assert again.logit_width == 10
    for ours, theirs in zip(again(images[:50]), made(images[:50]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_classifiers_training_continues(digits, tmp_path, monkeypatch):
    images, labels, steps = digits[0][:200], digits[1][:200], []
    train = functools.partial(feature_classifier.train_small_classifier, images, labels, "cpu")
    whole = train(tmp_path / "whole.pth", steps=7)
    step = torch.optim.Adam.step

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(feature_classifier, "SAVE_EVERY", 2)
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pth", steps=7)
    parts = train(tmp_path / "parts.pth", steps=7)
    assert len(steps) == 9  # from the fourth step on
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_classifier_of_other_data_replaces_the_cache(classifier, digits, tmp_path):
    made, of_made = classifier
    cache = tmp_path / "digits.pth"
    cache.write_bytes(of_made.read_bytes())
    other = features_of(digits, 64, cache, steps=2)
    assert other.name != made.name
    assert features_of(digits, 64, cache, steps=2).name == other.name
    cache.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"digits\.pth"):
        features_of(digits, 64, cache, steps=2)


def test_a_set_of_one_class_has_no_classifier(digits, tmp_path):
    images, labels = digits
    with pytest.raises(UserError, match=r"eval\.features"):
        feature_classifier.ClassifierFeatures(
            "ones", images, np.ones_like(labels), "cpu", tmp_path / "ones.pth"
        )


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_hub") is not None, reason="TensorFlow Hub is installed"
)
def test_without_tensorflow_hub_its_features_name_what_they_need():
    with pytest.raises(UserError, match=r"requirements-tfgan\.txt"):
        extractors.TFHubFeatures()
