"""Print the share of drawn digits that an independent classifier recognises.

    python scripts/recognise.py FOLDER_OF_SAMPLES...

A multilayer perceptron is trained on the real training digits. For the real test digits and each
folder this prints the share of images for which a class has a probability above 0.9; for samples by
class (``eval_samples/{class}``) also the share that is classified as the requested class. The
shares of a run's samples (``eval_sampl…``) are recorded in its ``metrics.json``.
"""

import pathlib
import re
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import datasets
from configs.demo import digits
from evaluation import without_classes
from metrics.sample_sets import mean_nfe, read_round
from storage.workdir import Workdir

SURE = 0.9  # the probability of a class above which an image counts as recognised


def recogniser(train):
    """A scikit-learn classifier of the digits, with confident probabilities."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((256,), alpha=1e-2, max_iter=500, random_state=0)
    return model.fit(flatten(train.images), train.labels)


def flatten(images):
    return np.asarray(images, dtype=np.float64).reshape(len(images), -1) / 255


def share_of_sure(probabilities):
    return float((probabilities.max(axis=1) > SURE).mean())


def shares(model, images, labels=None):
    """The share of recognised images and, with requested `labels`, the accuracy."""
    probabilities = model.predict_proba(flatten(images))
    values = {"recognised": share_of_sure(probabilities)}
    if labels is not None:
        values["as_asked"] = float((probabilities.argmax(axis=1) == labels).mean())
    return values


def print_row(name, count, values):
    cells = [f"{values[key]:.1%}" if key in values else "" for key in ("recognised", "as_asked")]
    print(f"| {name} | {count} | {' | '.join(cells)} |")


def main(folders):
    train, test = datasets.load_both(digits.get_config().data)
    model = recogniser(train)
    print(f"| images | number | above {SURE} | class asked for |")
    print("|---|---|---|---|")
    real = shares(model, test.images, test.labels)
    print_row("real test digits", len(test), real)
    for folder in map(pathlib.Path, folders):
        rounds = [read_round(0, path, "samples") for path in sorted(folder.rglob("samples_*.npz"))]
        labels = [int(item.path.parent.name) for item in rounds for _ in range(item.rows)]
        run = re.fullmatch(r"eval_sampl(?:es|ing)(.*)", folder.name)
        by_class = folder.name.startswith("eval_samples")
        images = np.concatenate([item.read() for item in rounds])
        values = shares(model, images, labels if by_class else None)
        print_row(folder, len(images), values)
        if run:
            settings = {
                "generated": len(images),
                "recogniser": f"perceptron on the training digits, above {SURE}",
                "samples": without_classes({**rounds[0].origin, "nfe": mean_nfe(rounds)}),
            }
            values |= {"real_recognised": real["recognised"], "settings": settings}
            Workdir(str(folder.parent.absolute())).record(**{f"recognised{run[1]}": values})


if __name__ == "__main__":
    main(sys.argv[1:])
