"""Checkpoints: ours, and the three published formats, read weights-only and loaded by name.

A file is a dict. `model` maps names to arrays (published names begin with ``module.``); `ema` is
``{decay, num_updates, shadow_params}`` in parameter order; `optimizer` is Adam's state. Ours adds
`step`, `position` (images drawn so far, which with the seed is the whole data order), `seed`,
`config` (JSON), `code` (the version that wrote it) and `data` (`datasets.Split.identity`). Every
random draw of a training step is seeded by (seed, step), so those numbers are the state of the
random generators too.
"""

import dataclasses
import hashlib
import os
import pathlib
import pickletools
import shutil
import sys
import zipfile
from collections.abc import Iterable
from typing import Any

import ml_collections
import torch

from models.ema import EMA
from storage import array_pickle
from storage.files import atomic_write
from storage.provenance import code_version
from utils import UserError

# The published optimisers hold their learning rate as a NumPy float64, pickled under either of
# NumPy's two names for it. Nothing else beyond plain tensors is let in.
NUMPY_FLOAT64 = [
    (array_pickle.scalar, "numpy.core.multiarray.scalar"),
    (array_pickle.scalar, "numpy._core.multiarray.scalar"),
    (array_pickle.Dtype, "numpy.dtype"),
]
# The names that checkpoints need, as their pickles spell them. PyTorch's weights-only reading
# allows more, among them bytearray, which turns a small number into as many bytes.
STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NAMES = {
    "_codecs encode",
    "collections OrderedDict",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in STORAGES),
}


@dataclasses.dataclass
class TrainState:
    """What training changes; `step` counts updates done, `position` images drawn.

    `data` is the identity of the training data (`datasets.Split`), None where that is not known;
    of a state that was loaded, it is the one that the training data must have.
    """

    model: torch.nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    step: int = 0
    position: int = 0
    data: dict[str, Any] | None = None


def save(path: str | os.PathLike, state: TrainState, config: ml_collections.ConfigDict) -> None:
    """Write `state` to `path`, whole or not at all."""
    with atomic_write(path) as file:
        torch.save(content_of(state, config), file)


def content_of(state: TrainState, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a checkpoint of `state` holds, see the module's docstring."""
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
    return content if state.data is None else {**content, "data": state.data}


def publish(path: pathlib.Path, name: pathlib.Path) -> None:
    """Make `name` another name of the checkpoint at `path`, atomically."""
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
    """Read a checkpoint to the CPU without running any code of it.

    Raises:
        UserError: the file is missing, damaged, holds more than arrays and numbers, claims to be
            larger than it is, or has no model.
    """
    try:
        _inspect(path)
        with torch.serialization.safe_globals(NUMPY_FLOAT64):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"The checkpoint {path} does not exist.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory; give a checkpoint file.") from None
    except Exception as error:  # a damaged or hostile file can fail anywhere in the reader
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is not a readable checkpoint: it is truncated, of another format, or holds "
            f"more than arrays and numbers ({reason[:200]})."
        ) from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise UserError(f"{path} holds no 'model'; expected a checkpoint of this or the originals.")
    return content


def _inspect(path):
    """Raise a ValueError if `torch.load` would take more memory than the file has bytes.

    Also if a byte was changed: PyTorch itself does not compare the archive's checksums.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed")
        if sum(member.file_size for member in members) > os.stat(path).st_size:
            raise ValueError("it claims to be larger than it is")
        changed = archive.testzip()
        if changed is not None:
            raise ValueError(f"{changed} was changed after it was written")
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        for opcode, name, _ in pickletools.genops(archive.read(pickled)):
            if opcode.name in ("STACK_GLOBAL", "INST") or (
                opcode.name == "GLOBAL" and name not in NAMES
            ):
                raise ValueError(f"it names {name}")


def require_kind(content: dict[str, Any], path: str | os.PathLike, kind: str) -> None:
    """Tell a classifier's checkpoint from a score model's by the names that it holds.

    Raises:
        UserError: `kind` is "classifier" or "score model" and the file is the other one.
    """
    names = [name.removeprefix("module.") for name in content["model"]]
    found = "classifier" if any(n.startswith("classifier.") for n in names) else "score model"
    if found != kind:
        raise UserError(
            f"{path} is the checkpoint of a {found}; expected a {kind}'s. --restore names the "
            "score model's, --restore_classifier the classifier's."
        )


def load_model(model: torch.nn.Module, content: dict[str, Any], path: str | os.PathLike) -> None:
    """Load the network's parameters and buffers by name.

    Raises:
        UserError: a name is missing or left over, a shape or type differs, or a value is not
            finite; it is named.
    """
    theirs = {name.removeprefix("module."): array for name, array in content["model"].items()}
    ours = model.state_dict()
    missing = [name for name in ours if name not in theirs]
    surplus = [name for name in theirs if name not in ours]
    for what, names in (("lacks", missing), ("holds the unknown", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"The checkpoint {path} {what} {names[0]}{more}; "
                "it belongs to another network than the config's."
            )
    for name, array in ours.items():
        shape = tuple(getattr(theirs[name], "shape", ()))
        if not torch.is_tensor(theirs[name]) or shape != tuple(array.shape):
            raise UserError(
                f"The checkpoint {path} has {name} of shape {shape}; "
                f"the config's network has {tuple(array.shape)}."
            )
        if theirs[name].is_floating_point() != array.is_floating_point():
            raise UserError(
                f"The checkpoint {path} has {name} of {theirs[name].dtype}; "
                f"the config's network has {array.dtype}."
            )
        _require_finite(theirs[name], name, path)
    model.load_state_dict(theirs)


def _require_finite(tensor, name, path):
    if not tensor.isfinite().all():
        raise UserError(
            f"The checkpoint {path} has NaN or infinite values in {name}; take an earlier one."
        )


def load_ema(ema: EMA, content: dict[str, Any], path: str | os.PathLike) -> None:
    """Load the averages; a file without any (published classifiers) starts them at its weights."""
    try:
        if "ema" in content:
            ema.load_state_dict(content["ema"])
        else:
            ema.restart()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_training(
    state: TrainState, content: dict[str, Any], path: str | os.PathLike, step_if_absent: int = 0
) -> None:
    """Continue from a checkpoint: model, EMA, optimiser moments, step and data position.

    The optimiser's settings stay the config's. A file without a step, as the published QC ones,
    counts as having done `step_if_absent` updates.

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


def read_count(content: dict[str, Any], name: str, path: str | os.PathLike, default: int) -> int:
    """A number of steps or images of a checkpoint, or `default` where it has none."""
    value = content.get(name, default)
    if not isinstance(value, int) or not 0 <= value < 2**62:
        found = value if isinstance(value, float) else type(value).__name__
        raise UserError(f"The checkpoint {path} has the {name} {found}; expected a whole number.")
    return value


def fingerprint(parameters: Iterable[torch.Tensor]) -> str:
    """A short hash of the parameters' values, to tell whose samples a file holds."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_moments(optimizer, content, path):
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        count = sum(len(group["params"]) for group in content["param_groups"])
        if count != len(parameters):
            raise UserError(
                f"The optimiser in {path} follows {count} parameters; the model has "
                f"{len(parameters)}."
            )
        for index, moments in content["state"].items():
            expected = parameters[index].shape
            for shape in (moments["exp_avg"].shape, moments["exp_avg_sq"].shape):
                if shape != expected:
                    raise UserError(
                        f"The optimiser in {path} has parameter {index} of shape {tuple(shape)}; "
                        f"the model has {tuple(expected)}."
                    )
            for name in ("exp_avg", "exp_avg_sq"):
                _require_finite(moments[name], f"{name} of parameter {index}", path)
            if not 0 <= float(moments["step"]) < 2**62:
                raise TypeError
    except UserError:
        raise
    except Exception:  # anything may lie where moments belong
        raise UserError(f"The optimiser in {path} is not a state of Adam.") from None
    # Names read from a file are other objects than the same names in the code, and a pickle writes
    # each object once: with the code's own, equal checkpoints have equal bytes.
    state = {
        index: {sys.intern(name): value for name, value in moments.items()}
        for index, moments in content["state"].items()
    }
    for index, moments in state.items():
        # A fused Adam wants them laid out as the parameter is, channels last or not.
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = torch.empty_like(parameters[index]).copy_(moments[name])
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})
