"""The 8×8 digits of scikit-learn."""

import ml_collections
import numpy as np

from readers.common import Source, block


def digits(data: ml_collections.ConfigDict, split: str) -> Source:
    """scikit-learn's 1,797 handwritten 8×8 digits; a fifth of each class is the test split."""
    return Source((1, 8, 8), 10, _digits_blocks(split), [])


def _digits_blocks(split):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    indices = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    chosen = np.sort(indices[0] if split == "train" else indices[1])
    images = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
    yield block("scikit-learn's digits", images, labels[chosen], (1, 8, 8), 10)
