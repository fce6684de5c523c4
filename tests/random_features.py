"""Random features and logits, in place of those of images."""

import numpy as np


def correlated_features(seed, count, width, shift=0.0, scale=1.0):
    """Random float32 features (count, width): correlated, rectified, of low effective dimension.

    Such are Inception's; in 2,048 independent dimensions no sample would be near another.
    """
    rng, mixing_rng = np.random.default_rng(seed), np.random.default_rng(0)
    spectrum = np.arange(1, width + 1, dtype=np.float32)[:, None] ** -0.7
    mixing = mixing_rng.standard_normal((width, width), dtype=np.float32) * spectrum
    latent = rng.standard_normal((count, width), dtype=np.float32)
    return np.maximum(scale * latent @ mixing + (shift + 0.1), 0, dtype=np.float32)


def random_logits(seed, count, classes):
    """Random float32 logits (count, classes), confident enough for a score well above 1."""
    return 3 * np.random.default_rng(seed).standard_normal((count, classes), dtype=np.float32)


def real_and_fake(real_count, fake_count, width):
    """Two sets of features that differ as a good generator's samples differ from the data."""
    real = correlated_features(1, real_count, width)
    return real, correlated_features(2, fake_count, width, shift=0.02, scale=0.97)
