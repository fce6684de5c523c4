"""Finds the files of samples, or of their features, that make up a set, in a fixed order.

A set has parts, the divisions of a QC run or the classes of a DLSM run. A part is a folder of
``samples_{round}.npz`` (``samples_{round}_latent.npz`` for features). The settings of a file are in
its `meta`; files of the published code have none.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np

import domains
from storage.files import load_npz, npz_header, read_meta
from storage.provenance import differences
from storage.settings import draws_by_class, number_of_classes
from storage.workdir import Workdir, variant
from utils import UserError, shares

ROUND = re.compile(r"samples_(\d+)(?:_latent)?\.npz")
PER_FILE = ("stream", "round")  # what files of one set differ in
NAMED = 10  # files or parts that a message names


@dataclasses.dataclass(frozen=True)
class Part:
    """A folder that should hold `expected` rows, samples or their features."""

    name: str
    folder: pathlib.Path
    expected: int


@dataclasses.dataclass(frozen=True)
class SampleFile:
    """A file of a part: its number, its settings, and its NFE if it has one."""

    path: pathlib.Path
    number: int
    dtype: np.dtype
    shape: tuple[int, ...]
    origin: dict
    nfe: float | None

    @property
    def rows(self) -> int:
        return self.shape[0]

    def read(self) -> np.ndarray:
        """The samples."""
        return load_npz(self.path, "samples")["samples"]


def numbered_rounds(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """The pairs (round, path) of a folder, in the order of the numbers: 2 before 10."""
    matches = ((ROUND.fullmatch(path.name), path) for path in folder.glob("samples_*.npz"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def read_round(number: int, path: pathlib.Path, array: str) -> SampleFile:
    """A round; only the header of its rows `array` is read.

    Raises:
        UserError: the file is damaged or lacks the array.
    """
    dtype, shape = npz_header(path, array)
    content = load_npz(path, optional=("meta", "nfe"))
    meta = read_meta(path, content["meta"]) if "meta" in content else {}
    origin = {name: meta[name] for name in meta if name not in PER_FILE}
    nfe = float(content["nfe"]) if "nfe" in content else None
    return SampleFile(path, number, dtype, shape, origin, nfe)


def find(parts: Sequence[Part], array: str, advice: str) -> list[list[SampleFile]]:
    """The rounds of each of `parts`, checked to be complete and of one origin.

    Args:
        array: the name of the rows in each file.
        advice: what to do if something is missing.

    Raises:
        UserError: parts or rounds are missing, there are more than requested, or files have
            different origins; names them.
    """
    found = [
        [read_round(number, path, array) for number, path in numbered_rounds(part.folder)]
        for part in parts
    ]
    folder = parts[0].folder.parent
    faults = []
    for part, rounds in zip(parts, found, strict=True):
        rows = sum(item.rows for item in rounds)
        if rows != part.expected:
            faults.append(f"{part.name} has {rows} of {part.expected}")
    known = {part.folder for part in parts}
    faults += [
        f"{path} was not asked for"
        for path in sorted(folder.glob("*"))
        if path.is_dir() and path not in known
    ]
    if faults:
        more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
        faults = "; ".join([*faults[:NAMED], *more])
        raise UserError(f"{folder} does not hold what was asked for: {faults}. {advice}")
    first, *others = (item for rounds in found for item in rounds)
    for item in others:
        if changed := differences(item.origin, first.origin):
            raise UserError(
                f"{item.path} and {first.path} differ in {', '.join(changed)}. One set needs equal "
                f"settings: remove one kind. {advice}"
            )
    return found


def check_images(
    dtype: np.dtype, shape: tuple, path: pathlib.Path, data: ml_collections.ConfigDict
) -> None:
    """Check that samples are of the domain of ``config.data``: (n, H, W, C) or (n, D).

    Raises:
        UserError: another type or shape; names the file.
    """
    domain = domains.from_config(data)
    if (dtype, shape[1:]) != (domain.dtype, domain.stored_shape):
        raise UserError(
            f"{path} holds {dtype} {domain.noun} of shape {shape[1:]}; "
            f"expected {domain.dtype} of {domain.stored_shape}."
        )


def mean_nfe(rounds: Sequence[SampleFile]) -> float | None:
    """The mean number of function evaluations of a sample; None if a file does not hold it."""
    if any(item.nfe is None for item in rounds):
        return None
    return sum(item.rows * item.nfe for item in rounds) / sum(item.rows for item in rounds)


# ---------------------------------------------------------------- what a configuration asks for


def parts_of(
    config: ml_collections.ConfigDict,
    place: Workdir,
    folder_of: Callable[[int, str], pathlib.Path] | None = None,
) -> list[Part]:
    """The parts of a run's samples, classes or divisions; ``config.eval.num_samples`` in total.

    Args:
        folder_of: function of a part's number and the samples' variant to its folder; None: that
            of the samples.
    """
    if draws_by_class(config):
        noun, count, folder = "class", number_of_classes(config), place.class_samples
    else:
        noun, count, folder = "division", config.eval.num_divisions, place.division
    return [
        Part(f"{noun} {index}", (folder_of or folder)(index, variant(config)), size)
        for index, size in enumerate(shares(config.eval.num_samples, count))
    ]


def describe(parts: Sequence[Part], drawn: Sequence[int], class_names: Sequence[str]) -> str:
    """The first and the last of the parts whose indices are `drawn`, classes with their names."""
    names = [part.name for part in parts]
    if len(class_names) == len(names):
        names = [f"{name} ({of_class})" for name, of_class in zip(names, class_names)]
    return " to ".join(names[index] for index in sorted({*drawn[:1], *drawn[-1:]})) or "none"


def origins(config: ml_collections.ConfigDict, place: Workdir) -> list[dict[str, Any]]:
    """The origin of the first file of each part that has one."""
    firsts = (numbered_rounds(part.folder)[:1] for part in parts_of(config, place))
    return [read_round(*found, "samples").origin for first in firsts for found in first]


def find_samples(config: ml_collections.ConfigDict, place: Workdir) -> list[list[SampleFile]]:
    """The rounds of every part, checked to be complete, of the data's shape, and of one origin.

    Raises:
        UserError: they are not.
    """
    advice = (
        "Draw what is missing with run_lib_sampling.py, or give the number of those that exist "
        "with --config.eval.num_samples and --config.eval.num_divisions."
    )
    found = find(parts_of(config, place), "samples", advice)
    for item in (item for rounds in found for item in rounds):
        check_images(item.dtype, item.shape, item.path, config.data)
    return found
