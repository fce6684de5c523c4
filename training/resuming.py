"""Where a training run goes on: the newest whole state of its workdir, if it is the same run."""

import json
import os
import pathlib
from typing import Any

import ml_collections

from storage import checkpoints
from storage.workdir import Workdir
from utils import UserError, flatten

# What gives `step` and `position` their meaning: the draws, the network and the loss. A run goes on
# with those it began with. Of the other sections nothing is fixed: the optimiser's settings, the
# pictures and the way to compute may change.
FIXED_SECTIONS = ("data", "model", "classifier", "loss", "cas")
FIXED_TRAINING = (
    *("sde", "continuous", "likelihood_weighting", "reduce_mean", "eps", "batch_size"),
    "label_dropout",
)
# Files move; which data and which score model they hold is not in their paths.
PLACES = ("data.root", "data.cache")


def _is_fixed(field):
    section, _, name = field.partition(".")
    if field in PLACES or field.endswith("_path"):
        return False
    if section == "training":
        return name in FIXED_TRAINING
    return field == "seed" or section in FIXED_SECTIONS


def require_same_run(
    content: dict[str, Any], config: ml_collections.ConfigDict, path: str | os.PathLike
) -> list[str]:
    """Refuse to continue the state `content` of `path` under a `config` that means another run.

    Returns:
        A list of sentences, about what changes and may.

    Raises:
        UserError: a field that gives the steps their meaning differs; names it.
    """
    if "config" not in content:  # a file of the published code
        return []
    try:
        before = flatten(json.loads(content["config"]))
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path} does not say which configuration it was trained with.") from None
    now = flatten(json.loads(config.to_json()))
    changed = [name for name in now if name in before and before[name] != now[name]]
    fixed = [name for name in changed if _is_fixed(name)]
    if fixed:
        differences = ", ".join(f"config.{n} {before[n]} (now {now[n]})" for n in fixed)
        flags = " ".join(f"--config.{n}={before[n]}" for n in fixed)
        raise UserError(
            f"{path} was trained with {differences}. Continue it with {flags}, or begin another "
            "run with another --workdir."
        )
    differences = ", ".join(f"{n} {now[n]} instead of {before[n]}" for n in changed)
    return [f"From here on: {differences}."] if changed else []


def required_data(
    content: dict[str, Any], config: ml_collections.ConfigDict
) -> dict[str, Any] | None:
    """What the data must have in common with those of a checkpoint whose weights begin a run.

    That is the class names, where the network takes labels. None where the file has no data.
    """
    data = content.get("data")
    if not isinstance(data, dict):
        return data
    kept = ("classes",) if config.model.get("num_classes") else ()
    return {name: data[name] for name in kept if name in data}


def newest_state(place: Workdir) -> tuple[pathlib.Path | None, dict[str, Any] | None, list[str]]:
    """The path and the content of the newest whole state that a run left in `place`.

    That is the resume point, or the last snapshot where that is newer. A file that is damaged is
    passed over for another that is not.

    Returns:
        Path and content, both None where there is no such file; and a list of sentences, about
        what was passed over.

    Raises:
        UserError: there are such files, and none can be read.
    """
    paths = [place.checkpoint(number) for number in place.numbers()[-1:]]
    resume_point = place.resume_point
    if resume_point.exists() and not (paths and resume_point.samefile(paths[0])):
        paths.append(resume_point)
    states, faults = [], []
    for path in paths:
        try:
            content = checkpoints.read(path)
            # Published files, put there to be sampled from, do not say where they stand.
            if path == resume_point or {"step", "position", "config"} <= content.keys():
                states.append((checkpoints.read_count(content, "step", path, 0), path, content))
        except UserError as error:
            faults.append(str(error))
    if not states:
        if faults:
            raise UserError(faults[0])
        return None, None, []
    _, path, content = max(states, key=lambda state: state[0])
    return path, content, [f"Passed over: {error}" for error in faults]
