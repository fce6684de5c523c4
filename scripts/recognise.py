"""How many of the drawn digits does an independent classifier recognise?

python demo/recognise.py FOLDER_OF_SAMPLES

A multilayer perceptron learns the real training digits. Printed are its accuracy on the real test
digits, the share of the samples to which it gives one class a probability above 0.9 (beside the
same share of the real test digits), and what share of the samples each digit has.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import datasets
from configs.demo import digits
from storage.files import load_npz


def recogniser(train):
    """A scikit-learn classifier of the digits, with confident probabilities."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((256,), alpha=1e-2, max_iter=500, random_state=0)
    return model.fit(flatten(train.images), train.labels)


def flatten(images):
    return np.asarray(images, dtype=np.float64).reshape(len(images), -1) / 255


def share_of_sure(probabilities):
    return (probabilities.max(axis=1) > 0.9).mean()


def main(folder):
    paths = sorted(pathlib.Path(folder).rglob("samples_*.npz"))
    samples = np.concatenate([load_npz(path, "samples")["samples"] for path in paths])
    data = digits.get_config().data
    train, test = datasets.load(data, "train"), datasets.load(data, "test")
    model = recogniser(train)
    accuracy = model.score(flatten(test.images), test.labels)
    real = share_of_sure(model.predict_proba(flatten(test.images)))
    probabilities = model.predict_proba(flatten(samples))
    shares = np.bincount(probabilities.argmax(axis=1), minlength=10) / len(samples)
    print(f"{folder}: {len(samples)} samples")
    print(f"  accuracy of the classifier on real test digits:     {accuracy:.1%}")
    print(f"  real test digits with a probability above 0.9:      {real:.1%}")
    print(
        f"  samples with a probability above 0.9:               {share_of_sure(probabilities):.1%}"
    )
    print("  share of each digit: " + "  ".join(f"{d}: {s:.1%}" for d, s in enumerate(shares)))


if __name__ == "__main__":
    main(sys.argv[1])
