"""Which files of samples, or of their features, make up a set: all of them, in one fixed order.

A set is made of parts, the divisions of a QC run or the classes of a DLSM run. A part is a folder
of ``samples_{round}.npz`` (``samples_{round}_latent.npz`` for features). What the files were made
with stands in their `meta`; files of the published code carry none.
"""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

import domains
from storage import files
from storage.files import load_npz, npz_header
from storage.provenance import differences
from storage.settings import draws_by_class, number_of_classes
from storage.workdir import Workdir, variant
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
    """A file of a part: its number, its rows, what it was made with, and its NFE if it has one."""

    path: pathlib.Path
    number: int
    rows: int
    origin: dict
    nfe: float | None = None


def numbered_rounds(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """The pairs (round, path) of a folder, in the order of the numbers: 2 before 10."""
    matches = ((ROUND.fullmatch(path.name), path) for path in folder.glob("samples_*.npz"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def look_at_round(number: int, path: pathlib.Path, array: str) -> tuple[Round, tuple]:
    """A round, and the type and shape of its rows, none of which are read.

    Raises:
        UserError: the file is damaged, lacks the array, or it has no rows.
    """
    dtype, shape = npz_header(path, array)
    if not shape:
        raise UserError(f"{path} holds a single number as {array}; expected rows of it.")
    content = load_npz(path, optional=("meta", "nfe"))
    meta = read_meta(content, path)
    origin = {name: meta[name] for name in meta if name not in PER_FILE}
    nfe = content.get("nfe")
    if nfe is not None and (nfe.size != 1 or nfe.dtype.kind not in "iuf"):
        raise UserError(f"{path} holds nfe of {nfe.dtype} and shape {nfe.shape}, no number.")
    nfe = None if nfe is None else float(nfe.item())
    return Round(path, number, shape[0], origin, nfe), (dtype, shape)


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
    check: Callable[[np.dtype, tuple, pathlib.Path], object] | None = None,
) -> list[list[Round]]:
    """The rounds of each of `parts`, complete and of one origin.

    Args:
        array: the name of the rows in each file.
        advice: a sentence about what to do when something is missing.
        check: called with the type, shape and path of each file's rows; raises a UserError if they
            do not fit.

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
            item, kind = look_at_round(number, path, array)
            if check is not None:
                check(*kind, path)
            rounds.append(item)
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
            f"{_some([str(item.path) for item in others], ', ')} and {first.path} were made "
            f"otherwise: {', '.join(fields)}. They do not mix: remove one kind. {advice}"
        )


def _some(items, separator):
    more = f"{separator}and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return separator.join(items[:NAMED]) + more


def check_images(
    dtype: np.dtype, shape: tuple, path: pathlib.Path, data: ml_collections.ConfigDict
) -> None:
    """Refuse what are not stored samples of the domain of ``config.data``, (n, H, W, C) or (n, D).

    Raises:
        UserError: another type or shape; names the file.
    """
    domain = domains.from_config(data)
    if (dtype, shape[1:]) != (domain.dtype, domain.stored_shape):
        raise UserError(
            f"{path} holds {dtype} {domain.noun} of shape {shape[1:]}; "
            f"expected {domain.dtype} of {domain.stored_shape}."
        )


def mean_nfe(rounds: Sequence[Round]) -> float | None:
    """The mean number of function evaluations of a sample; None if a file does not say it."""
    if any(item.nfe is None for item in rounds):
        return None
    return sum(item.rows * item.nfe for item in rounds) / sum(item.rows for item in rounds)


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


def flags_of(config: ml_collections.ConfigDict) -> str:
    """The flags that choose the samples of ``config.sampling`` on a command line, after a space."""
    method = config.sampling.method
    text = {"pc": "", "ode": " --ode"}.get(method, f" --sampler {method}")
    scaled = config.sampling.plain_scale is not None
    return f"{text} --scale {config.sampling.scaling_factor:g}" if scaled else text


def parts_of(
    config: ml_collections.ConfigDict,
    place: Workdir,
    folder_of: Callable[[int, str], pathlib.Path] | None = None,
) -> list[Part]:
    """The parts of a run's samples: its classes, or its divisions; ``config.eval.num_samples`` all.

    Args:
        folder_of: function of a part's number and the samples' variant to its folder; None: that
            of the samples.
    """
    by_class = draws_by_class(config)
    total = require_positive(config.eval.num_samples, "config.eval.num_samples")
    if by_class:
        noun, count = "class", number_of_classes(config)
        folder_of = folder_of or place.class_samples
    else:
        noun, count = "division", config.eval.num_divisions
        require_positive(count, "config.eval.num_divisions")
        folder_of = folder_of or place.division
    return [
        Part(f"{noun} {index}", folder_of(index, variant(config)), size)
        for index, size in enumerate(shares(total, count))
    ]


def find_samples(config: ml_collections.ConfigDict, place: Workdir) -> list[list[Round]]:
    """The rounds of every part, checked to be all there, images of the data's shape, of one make.

    Raises:
        UserError: they are not.
    """
    return find(
        parts_of(config, place),
        "samples",
        f"Draw what is missing with run_lib_sampling.py{flags_of(config)}, or say what there is "
        "with --config.eval.num_samples and --config.eval.num_divisions.",
        check=functools.partial(check_images, data=config.data),
    )


def read_samples(rounds: Iterable[Round]) -> Iterator[np.ndarray]:
    """Yield the images of each round."""
    for item in rounds:
        yield load_npz(item.path, "samples")["samples"]
