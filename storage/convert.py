"""Converts checkpoints to safetensors files and back.

python -m storage.convert checkpoint.pth weights.safetensors
python -m storage.convert weights.safetensors checkpoint.pth

A tensor's name is its path in the checkpoint (``model.all_modules.0.W``,
``ema.shadow_params.0``). The rest is JSON in the file's metadata, so that nothing is lost. A
safetensors file of another program is read as a model's tensors.
"""

import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from absl import flags

import cli
from storage import checkpoints
from storage.files import atomic_write
from utils import UserError

SUFFIX = ".safetensors"
STRUCTURE = "checkpoint"  # the metadata's entry


def convert(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Write the checkpoint or safetensors file `source` to `target` in the other format.

    Raises:
        UserError: none or both of them are safetensors files, or `source` is not readable.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if (source.suffix == SUFFIX) == (target.suffix == SUFFIX):
        raise UserError(
            f"{source} and {target} were given; expected a checkpoint and a {SUFFIX} file, the "
            "source first."
        )
    if source.suffix == SUFFIX:
        content = read(source)
        with atomic_write(target) as file:
            torch.save(content, file)
        return
    tensors = {}
    structure = split_tensors(checkpoints.read(source), "", tensors)
    data = _library().save(tensors, {STRUCTURE: json.dumps(structure)})
    with atomic_write(target) as file:
        file.write(data)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a safetensors file as a checkpoint's.

    Raises:
        UserError: it is missing or damaged.
    """
    library = _library()
    try:
        with library.safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if STRUCTURE not in metadata:
            return {"model": tensors}
        return join_tensors(json.loads(metadata[STRUCTURE]), tensors)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except Exception as error:  # a damaged file can fail anywhere
        raise UserError(f"{path} is not a readable safetensors file ({error}).") from None


def _library():
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(
            "The package safetensors is not installed; install it: pip install safetensors."
        ) from None
    return safetensors.torch


def split_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """`value` in JSON's types; its tensors are moved to the dict `tensors`, by their paths."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().clone().contiguous()  # no shared storage
        return {"tensor": path}
    if isinstance(value, dict):
        below = f"{path}." if path else ""
        items = [[key, split_tensors(v, f"{below}{key}", tensors)] for key, v in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        items = [split_tensors(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
        return {type(value).__name__: items}
    return {"value": value.item() if isinstance(value, np.generic) else value}


def join_tensors(part: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `split_tensors`."""
    ((kind, value),) = part.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: join_tensors(each, tensors) for key, each in value}
    if kind in ("list", "tuple"):
        items = [join_tensors(each, tensors) for each in value]
        return tuple(items) if kind == "tuple" else items
    return value


def main() -> None:
    _, *arguments = flags.FLAGS(sys.argv)
    if len(arguments) != 2:
        raise UserError("Give two files: python -m storage.convert FROM TO.")
    convert(*arguments)
    print(f"Wrote {arguments[1]}.")


if __name__ == "__main__":
    cli.launch(main, words=True)
