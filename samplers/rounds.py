"""Divides the samples of a command into divisions, classes and their rounds."""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from utils import UserError, shares


@dataclasses.dataclass(frozen=True)
class Round:
    """`count` images of a part, written to file `number`; `first` is the first image's index.

    A part, a division or a class, is a folder; `part` is its index.
    """

    part: int
    number: int
    first: int
    count: int


def divisions(evaluation: ConfigDict, division_idx: int | None) -> range:
    """The divisions to draw: all of ``config.eval.num_divisions``, or one.

    Raises:
        UserError: there is no such division.
    """
    count = evaluation.num_divisions
    if division_idx is None:
        return range(count)
    if not 0 <= division_idx < count:
        raise UserError(
            f"--division_idx is {division_idx}; with {count} divisions it goes from 0 to "
            f"{count - 1}."
        )
    return range(division_idx, division_idx + 1)


def chosen_classes(count: int, mode: str | None, first: int | None, end: int | None) -> range:
    """The labels that ``--mode``, ``--classid`` and ``--classidend`` choose of `count` classes.

    Raises:
        UserError: the flags contradict each other or name a class that does not exist.
    """
    if mode != "class":
        if first is not None or end is not None:
            raise UserError("--classid and --classidend choose classes only with --mode class.")
        return range(count)
    if first is None:
        raise UserError("--mode class needs --classid, the class to draw.")
    if not 0 <= first < count:
        raise UserError(f"--classid is {first}; the classes go from 0 to {count - 1}.")
    end = first + 1 if end is None else end
    if not first < end <= count:
        raise UserError(
            f"--classidend is {end}; it is the first class that is not drawn, so it must be above "
            f"--classid, {first}, and at most {count}."
        )
    return range(first, end)


def share(items: Sequence, parts: int, index: int) -> Sequence:
    """The `index`-th of `parts` shares of a list, in order."""
    sizes = shares(len(items), parts)
    start = sum(sizes[:index])
    return items[start : start + sizes[index]]


def split_rounds(part: int, total: int, batch_size: int, first: int = 0) -> list[Round]:
    """The rounds of `total` samples, indexed from `first`; the last round may be partial."""
    starts = range(0, total, batch_size)
    return [
        Round(part, number, first + start, min(batch_size, total - start))
        for number, start in enumerate(starts)
    ]


def of_divisions(sizes: Sequence[int], batch_size: int, chosen: Sequence[int]) -> list[Round]:
    """The rounds of the `chosen` divisions, each a folder; indices of images continue."""
    return [
        each
        for division in chosen
        for each in split_rounds(division, sizes[division], batch_size, sum(sizes[:division]))
    ]


def of_classes(
    sizes: Sequence[int],
    batch_size: int,
    classes: Sequence[int],
    chosen: Sequence[int],
    count: int,
) -> list[Round]:
    """The rounds of `classes`, each a folder, whose images are numbered from 0.

    A division is one of `count` shares of each class's rounds; only `chosen` ones are returned.
    """
    rounds = []
    for label in classes:
        every = split_rounds(label, sizes[label], batch_size)
        rounds += [each for division in chosen for each in share(every, count, division)]
    return rounds
