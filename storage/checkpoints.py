"""Checkpoints of this code and in the three published formats, read weights-only.

A file is a dict. `model` maps names to arrays (published names begin with ``module.``); `ema` is
``{decay, num_updates, shadow_params}`` in parameter order; `optimizer` is Adam's state. This code
adds `step`, `position` (images drawn so far), `seed`, `config` (JSON), `code` (`code_version`) and
`data` (`datasets.Split.identity`). The random generators of a step are seeded by (seed, step) and
need no state.
"""

import _codecs
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable
from typing import Any

import ml_collections
import numpy as np
import torch
from numpy._core.multiarray import scalar

from storage import pipelines
from storage.ema import EMA
from storage.files import atomic_write
from storage.provenance import code_version
from storage.workdir import is_missing, some_of
from utils import UserError

# The learning rate in published optimisers is a NumPy float64, pickled under either of NumPy's two
# names for it.
NUMPY_FLOAT64 = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    _codecs.encode,
]
# Prefixes of names by DataParallel and torch.compile.
PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")


@dataclasses.dataclass
class TrainState:
    """The state of a training: `step` counts updates, `position` images drawn.

    `data` is the identity of the training data (`datasets.Split`), or None.
    """

    model: torch.nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    step: int = 0
    position: int = 0
    data: dict[str, Any] | None = None


def save(path: str | os.PathLike, state: TrainState, config: ml_collections.ConfigDict) -> None:
    """Write `state` to `path`, atomically."""
    content = {
        "model": state.model.state_dict(),
        "ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "position": state.position,
        "seed": config.seed,
        "config": config.to_json(),
        "code": code_version(),
    }
    if state.data is not None:
        content["data"] = state.data
    with atomic_write(path) as file:
        torch.save(content, file)


def publish(path: pathlib.Path, name: pathlib.Path) -> None:
    """Make `name` a hard link to the checkpoint at `path` (or a copy), atomically."""
    if name.exists() and name.samefile(path):
        return
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        with open(path, "rb") as source, atomic_write(name) as file:
            shutil.copyfileobj(source, file)
    else:
        os.replace(temporary, name)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint, or a directory of diffusers, to the CPU without running any code of it.

    A bare state dict, or one under the name ``state_dict``, is returned as {"model": it}.

    Raises:
        UserError: the file is missing, damaged, of another kind, or has no model.
    """
    content = pipelines.read(path) if os.path.isdir(path) else _load(path, mmap=False)
    if zipfile.is_zipfile(path):
        # PyTorch does not check the archive's checksums. This takes 0.2 s for a GB.
        try:
            with zipfile.ZipFile(path) as archive:
                changed = archive.testzip()
        except Exception as error:  # zipfile raises many types on damaged files
            changed = error
        if changed is not None:
            raise UserError(f"{path} is damaged (checksum: {changed}); fetch it again.")
    for model in (content.get("model"), content.get("state_dict"), content):
        if _is_state_dict(model):
            return content if model is content.get("model") else {"model": model}
    raise UserError(
        f"{path} holds {', '.join(map(str, content)) or 'nothing'}; expected 'model', as in the "
        "checkpoints of this or the published code, 'state_dict', or a bare state dict."
    )


def read_config(path: str | os.PathLike) -> dict[str, Any] | None:
    """The configuration in a checkpoint of this code, else None. Tensors are not read.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    if os.path.isdir(path):
        return config_of(pipelines.read_config(path))
    return config_of(_load(path, mmap=zipfile.is_zipfile(path)))


def config_of(content: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration in the `content` of a checkpoint of this code, else None."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        config = json.loads(content["config"])
        return config if isinstance(config, dict) else None
    return None


def _load(path, mmap):
    """The dict in the file at `path`; with `mmap` its tensors are mapped."""
    try:
        with torch.serialization.safe_globals(NUMPY_FLOAT64):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise UserError(f"The checkpoint {path} does not exist. {_there_is(path)}") from None
    except Exception as error:  # PyTorch's reader raises many types on damaged files
        raise UserError(f"{path} {_what_is_wrong(path, error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a dict with 'model'.")
    return content


def _there_is(path):
    """The end of the message about a missing checkpoint: other files, where published ones go."""
    folder = pathlib.Path(path).parent
    root = folder.parent
    found = sorted((each.name for each in folder.glob("*.pth")), key=lambda name: (len(name), name))
    # A run that was stopped before its first snapshot has its resume point alone.
    newest = root / "checkpoints-meta/checkpoint.pth"
    there = f"{folder}/ holds {some_of(found)}. " if found else ""
    if newest.exists() and not found:
        there = f"Its resume point can be sampled: --restore {newest}. "
    elif folder.name == "checkpoints" and not root.is_dir():
        there = f"{is_missing(root)} "
    return f"{there}Where published files go: docs/published_weights.md."


def _what_is_wrong(path, error):
    """The end of the message about a file for which `torch.load` raises `error`."""
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"holds a pickled Python object ({named[1]}), such as torch.save(model) writes; "
            "reading it could run code. Save model.state_dict() instead."
        )
    try:
        with open(path, "rb") as file:
            start = file.read(500)
    except OSError as error:
        return f"cannot be read ({error.strerror})."
    # A msgpack map (0x81 to 0x8f, 0xde, 0xdf); a pickle begins with 0x80.
    if start[:1] in [bytes([code]) for code in (*range(0x81, 0x90), 0xDE, 0xDF)]:
        return "looks like a checkpoint of JAX/Flax (msgpack); expected one of PyTorch."
    found = "is a truncated or damaged PyTorch checkpoint"
    if not start:
        found = "is empty"
    elif b"\0" not in start and (start.isascii() or start.lstrip().startswith(b"<")):
        found = "is a text, such as a web page, and no PyTorch checkpoint"
    elif start[:2] not in (b"PK", b"\x80\x02"):
        found = "is no PyTorch checkpoint"
    return f"{found}; fetch it again, or take another file."


def _is_state_dict(model):
    return (
        isinstance(model, dict)
        and bool(model)
        and all(isinstance(name, str) and torch.is_tensor(each) for name, each in model.items())
    )


def tensors_of(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's tensors by their names, without `PREFIXES`."""
    return {PREFIXES.sub("", name): tensor for name, tensor in content["model"].items()}


def require_kind(content: dict[str, Any], path: str | os.PathLike, kind: str) -> None:
    """Check that a checkpoint is of `kind`, "classifier" or "score model".

    Raises:
        UserError: it is of another kind, by its tensors' names and configuration.
    """
    is_classifier = any(name.startswith("classifier.") for name in tensors_of(content))
    found = "classifier" if is_classifier else "score model"
    if "cas" in (config_of(content) or {}):
        found = "CAS network"
    if found != kind:
        raise UserError(f"{path} is the checkpoint of a {found}; expected a {kind}'s.")


def load_model(model: torch.nn.Module, content: dict[str, Any], path: str | os.PathLike) -> None:
    """Load the network's parameters and buffers by name.

    Raises:
        UserError: the tensors' names, shapes or types differ, or a value is not finite.
    """
    tensors, expected = tensors_of(content), model.state_dict()
    for name in dict.fromkeys([*expected, *tensors]):
        _require(path, name, tensors.get(name), expected.get(name))
    model.load_state_dict(tensors)


def load_ema(ema: EMA, content: dict[str, Any], path: str | os.PathLike) -> None:
    """Load the averages; without any in the file (published classifiers), copy the parameters.

    The decay is the configuration's.

    Raises:
        UserError: the arrays' number, shapes or types differ, or a value is not finite.
    """
    if "ema" not in content:
        ema.restart()
        return
    try:
        arrays, updates = list(content["ema"]["shadow_params"]), int(content["ema"]["num_updates"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"The EMA in {path} is not {{decay, num_updates, shadow_params}}."
        ) from None
    for index, pair in enumerate(itertools.zip_longest(arrays, ema.shadow)):
        _require(path, f"array {index} of the EMA", *pair)
    ema.load(arrays, updates)


def _require(path, name, found, expected):
    """Raise a UserError unless a tensor is as `expected` in shape and type, and finite."""
    if _form(found) != _form(expected):
        raise UserError(
            f"The checkpoint {path} does not fit the configuration: {name} is {_form(found)} in "
            f"the file and {_form(expected)} in the network."
        )
    if not found.isfinite().all():
        raise UserError(
            f"The checkpoint {path} has NaN or infinite values in {name}; take an earlier one."
        )


def _form(tensor):
    """A tensor's shape and type as text."""
    if tensor is None:
        return "missing"
    numbers = "real" if tensor.is_floating_point() else "whole"
    return f"{tuple(tensor.shape)} of {numbers} numbers"


def load_training(
    state: TrainState,
    content: dict[str, Any],
    path: str | os.PathLike,
    step_if_absent: int = 0,
) -> None:
    """Continue from a checkpoint: model, EMA, optimiser moments, step and data position.

    The optimiser's settings are the configuration's. A file without a step, such as QC's published
    ones, counts as `step_if_absent` updates.

    Raises:
        UserError: a part of the file does not fit.
    """
    load_model(state.model, content, path)
    load_ema(state.ema, content, path)
    if "optimizer" in content:
        _load_moments(state.optimizer, content["optimizer"], path)
    state.step = read_count(content, "step", path, step_if_absent)
    state.position = read_count(content, "position", path, 0)
    state.data = content.get("data")


def read_count(
    content: dict[str, Any], name: str, path: str | os.PathLike, default: int | None = None
) -> int | None:
    """A number of steps or images of a checkpoint, or `default` where it has none.

    Raises:
        UserError: it is not a whole number.
    """
    if name not in content:
        return default
    value = content[name]
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise UserError(f"The checkpoint {path} has the {name} {value!r}; expected a whole number.")
    return value


def fingerprint(parameters: Iterable[torch.Tensor]) -> str:
    """A short hash of the parameters' values, which identifies the model of a file of samples."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_moments(optimizer, content, path):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        count = sum(len(group["params"]) for group in content["param_groups"])
        if count != len(parameters):
            raise UserError(
                f"The optimiser in {path} has {count} parameters; the model has {len(parameters)}."
            )
        state = {}
        for index, moments in content["state"].items():
            # A pickle writes each string object once. With interned names a loaded and a new state
            # are saved to equal bytes.
            state[index] = moments = {sys.intern(name): each for name, each in moments.items()}
            for name in ("exp_avg", "exp_avg_sq"):
                expected = parameters[index]
                _require(path, f"the optimiser's {name} {index}", moments[name], expected)
                # A fused Adam needs the memory format of the parameter.
                moments[name] = torch.empty_like(expected).copy_(moments[name])
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UserError(f"The optimiser in {path} is not a state of Adam.") from None
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
