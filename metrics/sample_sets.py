"""Which files of samples, or of their features, make up a set: all of them, in one fixed order.

A set is made of parts, the divisions of a QC run or the classes of a DLSM run. A part is a folder
of ``samples_{round}.npz`` (``samples_{round}_latent.npz`` for features). What the files were made
with stands in their `meta`; files of the published code carry none.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

import domains
from configs.classes import number_of_classes
from storage import files
from storage.files import load_npz
from storage.provenance import differences
from storage.workdir import Workdir
from utils import UserError, require_positive, shares

ROUND = re.compile(r"samples_(\d+)(?:_latent)?\.npz")
PER_FILE = ("stream", "round")  # what files of one set differ in
NAMED = 10  # files or parts that a sentence names


@dataclasses.dataclass(frozen=True)
class Part:
    """A folder that should hold `expected` rows, samples or their features."""

    name: str
    folder: pathlib.Path
    expected: int


@dataclasses.dataclass(frozen=True)
class Round:
    """A file of a part: its number, its rows, and what it was made with."""

    path: pathlib.Path
    number: int
    rows: int
    origin: dict


def numbered_rounds(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """The pairs (round, path) of a folder, in the order of the numbers: 2 before 10."""
    matches = ((ROUND.fullmatch(path.name), path) for path in folder.glob("samples_*.npz"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def read_round(path: pathlib.Path, array: str) -> tuple[np.ndarray, dict[str, Any]]:
    """A round's array and origin.

    Raises:
        UserError: the file is damaged, lacks the array, or it has no rows.
    """
    content = load_npz(path, array, optional=("meta",))
    if content[array].ndim == 0:
        raise UserError(f"{path} holds a single number as {array}; expected rows of it.")
    meta = read_meta(content, path)
    return content[array], {name: meta[name] for name in meta if name not in PER_FILE}


def read_meta(content: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, Any]:
    """The `meta` among a file's arrays as a dict; empty where there is none.

    Raises:
        UserError: it is not one of ours.
    """
    return files.read_meta(path, content["meta"]) if "meta" in content else {}


def find(
    parts: Sequence[Part],
    array: str,
    advice: str,
    check: Callable[[np.ndarray, pathlib.Path], object] | None = None,
) -> list[list[Round]]:
    """The rounds of each of `parts`, complete and of one origin.

    Args:
        array: the name of the rows in each file.
        advice: a sentence about what to do when something is missing.
        check: called with each file's array and path; raises a UserError if it does not fit.

    Returns:
        A list with one list of `Round` per part.

    Raises:
        UserError: parts or rounds are missing, there are more than asked for, or files of
            different origin; names them.
    """
    found = []
    for part in parts:
        rounds = []
        for number, path in numbered_rounds(part.folder):
            rows, origin = read_round(path, array)
            if check is not None:
                check(rows, path)
            rounds.append(Round(path, number, len(rows), origin))
        found.append(rounds)
    folder = parts[0].folder.parent
    faults = [fault for fault in map(_fault, parts, found) if fault]
    known = {part.folder.name for part in parts}
    faults += [
        f"{folder / name} was not asked for"
        for name in sorted(path.name for path in folder.glob("*") if path.is_dir())
        if name not in known
    ]
    if faults:
        raise UserError(
            f"{folder} does not hold what was asked for: {_some(faults, '; ')}. {advice}"
        )
    _require_one_origin([item for rounds in found for item in rounds], advice)
    return found


def _fault(part, rounds):
    """What is wrong with the number of a part's rows, in words; None if nothing."""
    rows = sum(item.rows for item in rounds)
    if rows == part.expected:
        return None
    if not rounds:
        return f"{part.name} is missing"
    # All but the last round are of one size, so that the largest tells how many there should be.
    numbers = {item.number for item in rounds}
    count = math.ceil(part.expected / max(1, *(item.rows for item in rounds)))
    absent = [str(number) for number in range(count) if number not in numbers]
    detail = f", round {_some(absent, ', ')} missing" if absent else ""
    return f"{part.name} has {rows} of {part.expected}{detail}"


def _require_one_origin(rounds, advice):
    first = rounds[0]
    changed = [differences(item.origin, first.origin) for item in rounds]
    others = [item for item, names in zip(rounds, changed) if names]
    if others:
        fields = sorted({name for names in changed for name in names})
        raise UserError(
            f"{_some([str(item.path) for item in others], ', ')} and {first.path} were made with "
            f"different {', '.join(fields)}; they do not mix. Remove one kind. {advice}"
        )


def _some(items, separator):
    more = f"{separator}and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return separator.join(items[:NAMED]) + more


def check_images(samples: np.ndarray, path: pathlib.Path, data: ml_collections.ConfigDict) -> None:
    """Refuse what are not stored samples of the domain of ``config.data``, (n, H, W, C) or (n, D).

    Raises:
        UserError: another type or shape; names the file.
    """
    domain = domains.from_config(data)
    if (samples.dtype, samples.shape[1:]) != (domain.dtype, domain.stored_shape):
        raise UserError(
            f"{path} holds {samples.dtype} {domain.noun} of shape {samples.shape[1:]}; "
            f"expected {domain.dtype} of {domain.stored_shape}."
        )


def rows_of(content: dict[str, np.ndarray], name: str, path: pathlib.Path) -> np.ndarray | None:
    """The features `name` of a file's arrays: numbers (n, D), or None where they are optional.

    Raises:
        UserError: something else; names the file.
    """
    array = content.get(name)
    if array is not None and (array.ndim != 2 or array.dtype.kind not in "iuf"):
        raise UserError(
            f"{path} holds {name} of {array.dtype} and shape {array.shape}; expected a row of "
            "numbers for each image."
        )
    return array


def in_batches(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield each of `arrays` in pieces of at most `size` rows."""
    for array in arrays:
        for start in range(0, len(array), size):
            yield array[start : start + size]


# ---------------------------------------------------------------- what a configuration asks for


def flag_of(config: ml_collections.ConfigDict) -> str:
    """The flag that chooses ``config.sampling.method`` on a command line, after a space."""
    method = config.sampling.method
    return {"pc": "", "ode": " --ode"}.get(method, f" --sampler {method}")


def division_parts(config: ml_collections.ConfigDict, place: Workdir) -> list[Part]:
    """A part for each division of a QC run."""
    for field in ("num_samples", "num_divisions"):
        require_positive(config.eval[field], f"config.eval.{field}")
    sizes = shares(config.eval.num_samples, config.eval.num_divisions)
    return [
        Part(f"division {index}", place.division(index, config.sampling.method), size)
        for index, size in enumerate(sizes)
    ]


def class_parts(
    config: ml_collections.ConfigDict, folder_of: Callable[[int, str], pathlib.Path]
) -> list[Part]:
    """A part for each class of a DLSM run; ``folder_of(label, method)`` holds it."""
    total = require_positive(config.eval.num_samples, "config.eval.num_samples")
    sizes = shares(total, number_of_classes(config))
    return [
        Part(f"class {label}", folder_of(label, config.sampling.method), size)
        for label, size in enumerate(sizes)
    ]


def find_samples(config: ml_collections.ConfigDict, parts: Sequence[Part]) -> list[list[Round]]:
    """The rounds of every part, checked to be all there, images of the data's shape, of one make.

    Raises:
        UserError: they are not.
    """
    command = f"run_lib_sampling.py{flag_of(config)}"
    return find(
        parts,
        "samples",
        f"Draw what is missing with {command}, or say what there is with "
        "--config.eval.num_samples and --config.eval.num_divisions.",
        check=functools.partial(check_images, data=config.data),
    )


def find_division_samples(config: ml_collections.ConfigDict, workdir: str) -> list[Round]:
    """The rounds of a QC run's samples, one after the other."""
    parts = division_parts(config, Workdir(workdir))
    return list(itertools.chain.from_iterable(find_samples(config, parts)))


def find_class_samples(config: ml_collections.ConfigDict, workdir: str) -> list[list[Round]]:
    """The rounds of a DLSM run's samples, a list for each class."""
    return find_samples(config, class_parts(config, Workdir(workdir).class_samples))


def read_samples(rounds: Iterable[Round]) -> Iterator[np.ndarray]:
    """Yield the images of each round."""
    for item in rounds:
        yield read_round(item.path, "samples")[0]
