"""Do class-conditional digits carry the class that was asked for?

python demo/recognise_classes.py WORKDIR...

The classifier of recognise.py, which learns the real training digits and nothing else, reads the
samples of each workdir. Printed is, for each class that was asked for, the share of the samples in
which it sees that class. Each workdir gets a picture, classes.png, with a row for every class.
"""

import sys

import numpy as np
from recognise import digits, flatten, recogniser

import datasets
from domains import image_grid
from storage.files import load_npz, save_picture
from storage.workdir import Workdir

CLASSES = range(10)
COLUMNS = 20  # of the pictures


def samples(workdir, label):
    """The samples (N, H, W, C) of one class."""
    paths = sorted(Workdir(workdir).class_samples(label, "pc").glob("samples_*.npz"))
    return np.concatenate([load_npz(path, "samples")["samples"] for path in paths])


def main(workdirs):
    data = digits.get_config().data
    model = recogniser(datasets.load(data, "train"))
    test = datasets.load(data, "test")
    seen = model.predict(flatten(test.images))
    rows = {"real test digits": [(seen[test.labels == c] == c).mean() for c in CLASSES]}
    for workdir in workdirs:
        drawn = [samples(workdir, label) for label in CLASSES]
        rows[workdir] = [(model.predict(flatten(x)) == c).mean() for c, x in enumerate(drawn)]
        picture = Workdir(workdir).root / "classes.png"
        save_picture(picture, image_grid(np.concatenate([x[:COLUMNS] for x in drawn]), COLUMNS))
    print("Share of the samples in which an independent classifier sees the class asked for:")
    print("| samples | all | " + " | ".join(map(str, CLASSES)) + " |")
    print("|---|---|" + "---|" * len(CLASSES))
    for name, shares in rows.items():
        cells = " | ".join(f"{share:.0%}" for share in shares)
        print(f"| {name} | {np.mean(shares):.1%} | {cells} |")


if __name__ == "__main__":
    main(sys.argv[1:])
