"""How many of the drawn digits an independent classifier recognises.

    python scripts/recognise.py FOLDER_OF_SAMPLES...

A multilayer perceptron learns the real training digits. Printed is, for the real test digits and
for each folder, the share of images to which it gives one class a probability above 0.9; and of
samples of classes (``eval_samples/{class}``) the share in which it sees the class asked for.
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


def print_row(name, model, images, labels):
    probabilities = model.predict_proba(flatten(images))
    seen = "" if labels is None else f"{(probabilities.argmax(1) == labels).mean():.1%}"
    print(f"| {name} | {len(images)} | {share_of_sure(probabilities):.1%} | {seen} |")


def main(folders):
    train, test = datasets.load_both(digits.get_config().data)
    model = recogniser(train)
    print("| images | number | above 0.9 | class asked for |")
    print("|---|---|---|---|")
    print_row("real test digits", model, test.images, test.labels)
    for folder in map(pathlib.Path, folders):
        paths = sorted(folder.rglob("samples_*.npz"))
        parts = [load_npz(path, "samples")["samples"] for path in paths]
        labels = [int(path.parent.name) for path, part in zip(paths, parts) for _ in part]
        by_class = folder.name.startswith("eval_samples")
        print_row(folder, model, np.concatenate(parts), labels if by_class else None)


if __name__ == "__main__":
    main(sys.argv[1:])
