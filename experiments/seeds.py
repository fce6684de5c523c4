"""Means and spreads over seeds of what `plane` or `moons` have recorded, and their differences.

    python -m experiments.seeds --experiment plane

One table for every set, size and way of evaluation: mean ± standard deviation of each model over
its seeds; then what it has more than the first one, U or cross-entropy, seed by seed, and the p of
Student's paired test that the mean of these differences is 0. Two seeds or more are needed.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from scipy import stats

import cli
from experiments import common
from storage.workdir import Workdir
from utils import UserError

COMPARED = {"plane": ("model", "usbm"), "moons": ("loss", "ce")}
"""Experiment -> the setting by which its runs are compared, and the value that the others are
compared with."""


def recorded(experiment: str) -> dict[tuple, dict[str, dict[int, Mapping]]]:
    """What stands in ``results/experiments/{experiment}``.

    Returns:
        {pairs of the settings that are alike: {model: {seed: numbers}}}.

    Raises:
        UserError: nothing stands there.
    """
    compared, _ = COMPARED[experiment]
    groups = collections.defaultdict(lambda: collections.defaultdict(dict))
    root = Workdir(f"experiments/{experiment}").root
    for path in sorted(root.glob("*/metrics.json")):
        for numbers in Workdir(path.parent.absolute()).recorded().values():
            settings = dict(numbers["settings"])
            model, seed = settings.pop(compared), settings.pop("seed")
            groups[tuple(settings.items())][model][seed] = numbers
    if not groups:
        raise UserError(f"{root} has no results; run python -m experiments.{experiment} first.")
    return groups


def with_spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


def difference(first: Mapping[int, Mapping], other: Mapping[int, Mapping], quantity: str) -> str:
    """Mean ± standard deviation of other − first over the seeds of both, and p; or nothing."""
    seeds = sorted(first.keys() & other.keys())
    more = np.array([other[seed][quantity] - first[seed][quantity] for seed in seeds])
    if len(more) < 2 or not more.any():
        return ""
    p = f" (p = {stats.ttest_1samp(more, 0).pvalue:.2g})" if np.ptp(more) > 0 else ""
    return with_spread(more) + p


def table(models: Mapping[str, Mapping[int, Mapping]], leading: str) -> tuple[list, list]:
    """Heads and rows of the models that have two seeds or more.

    The one named `leading` comes first, and the others' differences from it, if it is there.
    """
    models = {name: runs for name, runs in models.items() if len(runs) > 1}
    names = sorted(models, key=lambda name: (name != leading, name))
    others = names[1:] if leading in models else []
    heads = ["", *(f"{name}, {len(models[name])} seeds" for name in names)]
    heads += [f"{name} − {leading}" for name in others]
    rows = []
    runs = [run for seeds in models.values() for run in seeds.values()]
    for quantity in sorted(set.intersection(*map(set, runs)) - {"settings"}) if runs else ():
        means = [with_spread([row[quantity] for row in models[name].values()]) for name in names]
        more = [difference(models[leading], models[name], quantity) for name in others]
        rows.append([quantity, *means, *more])
    return heads, rows


def main() -> None:
    experiment = flags.FLAGS.experiment
    for settings, models in recorded(experiment).items():
        heads, rows = table(models, COMPARED[experiment][1])
        if rows:
            print("\n" + ", ".join(f"{key} {value}" for key, value in settings) + "\n")
            common.print_table(heads, rows)


if __name__ == "__main__":
    flags.DEFINE_enum("experiment", None, list(COMPARED), "Whose runs.", required=True)
    cli.launch(main)
