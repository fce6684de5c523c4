"""Which files of samples, or of their features, make up a set: all of them, in one fixed order.

A set is made of parts, the divisions of a QC run or the classes of a DLSM run. A part is a folder
of ``samples_{round}.npz`` (``samples_{round}_latent.npz`` for features). What the files were made
with stands in their `meta`; files of the published code carry none.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
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


def look_at_round(number: int, path: pathlib.Path, array: str) -> Round:
    """A round; of the rows `array` only the header is read.

    Raises:
        UserError: the file is damaged or lacks the array.
    """
    dtype, shape = npz_header(path, array)
    content = load_npz(path, optional=("meta", "nfe"))
    nfe = content.get("nfe", np.array(np.nan))
    if not shape or nfe.size != 1 or nfe.dtype.kind not in "iuf":
        raise UserError(f"{path} does not hold rows of {array}, or no single number as nfe.")
    nfe = float(nfe.item()) if "nfe" in content else None
    meta = read_meta(content, path)
    origin = {name: meta[name] for name in meta if name not in PER_FILE}
    return Round(path, number, dtype, shape, origin, nfe)


def read_meta(content: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, Any]:
    """The `meta` among a file's arrays as a dict; empty where there is none.

    Raises:
        UserError: it is not one of ours.
    """
    return files.read_meta(path, content["meta"]) if "meta" in content else {}


def find(parts: Sequence[Part], array: str, advice: str) -> list[list[Round]]:
    """The rounds of each of `parts`, complete and of one origin: a list for each.

    Args:
        array: the name of the rows in each file.
        advice: a sentence about what to do when something is missing.

    Raises:
        UserError: parts or rounds are missing, there are more than asked for, or files of
            different origin; names them.
    """
    found = [
        [look_at_round(number, path, array) for number, path in numbered_rounds(part.folder)]
        for part in parts
    ]
    folder = parts[0].folder.parent
    faults = []
    for part, rounds in zip(parts, found, strict=True):
        rows = sum(item.rows for item in rounds)
        if rows != part.expected:
            faults.append(f"{part.name} has {rows} of {part.expected}")
    known = {part.folder.name for part in parts}
    others = sorted(path for path in folder.glob("*") if path.is_dir() and path.name not in known)
    faults += [f"{path} was not asked for" for path in others]
    if faults:
        raise UserError(f"{folder} does not hold what was asked for: {_some(faults)}. {advice}")
    rounds = [item for part in found for item in part]
    changed = {item.path: differences(item.origin, rounds[0].origin) for item in rounds}
    others = [str(path) for path, names in changed.items() if names]
    if others:
        fields = sorted({name for names in changed.values() for name in names})
        raise UserError(
            f"{_some(others)} and {rounds[0].path} were made otherwise: {', '.join(fields)}. "
            f"They do not mix: remove one kind. {advice}"
        )
    return found


def _some(items):
    more = [f"and {len(items) - NAMED} more"] if len(items) > NAMED else []
    return "; ".join([*items[:NAMED], *more])


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


def origins(config: ml_collections.ConfigDict, place: Workdir) -> list[dict[str, Any]]:
    """What the first file of each part of the samples was made with, of those that are there."""
    firsts = (numbered_rounds(part.folder)[:1] for part in parts_of(config, place))
    return [
        look_at_round(number, path, "samples").origin for first in firsts for number, path in first
    ]


def find_samples(config: ml_collections.ConfigDict, place: Workdir) -> list[list[Round]]:
    """The rounds of every part, checked to be all there, images of the data's shape, of one make.

    Raises:
        UserError: they are not.
    """
    found = find(
        parts_of(config, place),
        "samples",
        f"Draw what is missing with run_lib_sampling.py{flags_of(config)}, or say what there is "
        "with --config.eval.num_samples and --config.eval.num_divisions.",
    )
    for rounds in found:
        for item in rounds:
            check_images(item.dtype, item.shape, item.path, config.data)
    return found
