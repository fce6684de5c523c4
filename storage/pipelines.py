"""Directories of the package diffusers, read as checkpoints and written from them.

A directory holds a `UNet2DModel` and its scheduler as `save_pretrained` writes them, together or in
``unet/`` and ``scheduler/``. Weights are read from safetensors only; no code is downloaded.
"""

import inspect
import json
import os
import pathlib
import tempfile
import types
from typing import Any

from ml_collections import ConfigDict

from utils import UserError

SCHEDULER = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


def library() -> types.ModuleType:
    """The package diffusers.

    Raises:
        UserError: it is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise UserError(
            "The package diffusers is not installed; install it: pip install diffusers."
        ) from None
    return diffusers


def local(name: str) -> str:
    """The directory `name`, or the directory of the Hugging Face hub's files, downloaded once.

    Raises:
        UserError: there is neither.
    """
    if os.path.isdir(name):
        return name
    library()
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*fp16*"]
        )
    except Exception as error:  # many types, of names, networks and caches
        raise UserError(
            f"config.model.pretrained is {name}, which is no directory and cannot be downloaded "
            f"from the Hugging Face hub ({type(error).__name__})."
        ) from None


def read(directory: str | os.PathLike) -> dict[str, Any]:
    """The network and its configuration as a checkpoint's content.

    Raises:
        UserError: something is missing, or of a kind that is no score of the SDE ``ddpm``.
    """
    content, place = read_config(directory), _part(directory, "unet")
    network = library().UNet2DModel
    try:
        unet, loading = network.from_pretrained(
            place,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises many types, of files, fields and shapes
        raise UserError(
            f"{place} has no UNet2DModel that can be read with its weights as safetensors "
            f"({' '.join(str(error).split())[:200]}); expected files of save_pretrained."
        ) from None
    # diffusers only warns, and leaves such tensors random.
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, loading[f"{kind}_keys"])):
            found = f"{len(names)} {kind}, first {names[0]}"
            raise UserError(f"The weights in {place} do not fit its config.json ({found}).")
    content["model"] = {f"unet.{name}": each for name, each in unet.state_dict().items()}
    return content


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
    """A checkpoint's content without the tensors: the configuration that `directory` describes.

    Raises:
        UserError: as `read`.
    """
    unet = {**_defaults(), **_json(_part(directory, "unet") / "config.json", directory)}
    scheduler = _json(_part(directory, "scheduler") / "scheduler_config.json", directory)
    kind = unet.get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(f"{directory} holds a {kind}; expected a UNet2DModel.")
    missing = [name for name in SCHEDULER if scheduler.get(name) is None]
    unknown = [n for n in ("trained_betas", "rescale_betas_zero_snr") if scheduler.get(n)]
    if missing or unknown:
        raise UserError(
            f"The scheduler in {directory} is a {scheduler.get('_class_name')} "
            f"{'without' if missing else 'with'} {', '.join(missing or unknown)}; expected a "
            "DDPM's, with a schedule of β."
        )
    steps = scheduler["num_train_timesteps"]
    if not 0 < scheduler["beta_start"] <= scheduler["beta_end"] < 1:
        raise UserError(
            f"{directory} has beta_start {scheduler['beta_start']} and beta_end "
            f"{scheduler['beta_end']}; expected increasing numbers between 0 and 1."
        )
    data = {"num_channels": unet["in_channels"], "centered": True}
    size = unet["sample_size"]
    if size is not None:
        height, width = size if isinstance(size, list) else (size, None)
        data |= {"image_size": height, "image_width": width if width != height else None}
    model = {
        "name": "diffusers",
        "energy": False,
        "unet": json.dumps(_changed(unet), sort_keys=True),
        "dropout": unet["dropout"],
        "prediction_type": scheduler.get("prediction_type", "epsilon"),
        "beta_schedule": scheduler["beta_schedule"],
        "beta_min": steps * scheduler["beta_start"],
        "beta_max": steps * scheduler["beta_end"],
        "num_scales": steps,
    }
    training = {"sde": "ddpm", "continuous": False}
    return {"config": json.dumps({"data": data, "model": model, "training": training})}


def write(directory: str | os.PathLike, network: Any, config: ConfigDict) -> None:
    """Write a `DiffusersUNet` with its scheduler as a `DDPMPipeline`, which diffusers loads.

    It is written beside `directory` and then renamed, so that `directory` is complete or absent.

    Raises:
        UserError: ``config.model.name`` is another one, or `directory` exists and is not empty.
    """
    if config.model.name != "diffusers":
        raise UserError(
            f"The model {config.model.name} is no network of diffusers; only one that was trained "
            "with config.model.name=diffusers can be written for it."
        )
    target = pathlib.Path(directory).resolve()
    if target.exists() and not (target.is_dir() and not os.listdir(target)):
        raise UserError(f"{target} is a file, or not empty; name a new directory.")
    model, steps = config.model, config.model.num_scales
    scheduler = library().DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=model.beta_min / steps,
        beta_end=model.beta_max / steps,
        beta_schedule=model.beta_schedule,
        prediction_type=model.prediction_type,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        part = os.path.join(temporary, target.name)
        library().DDPMPipeline(network.unet, scheduler).save_pretrained(part)
        os.replace(part, target)


def _part(directory, name):
    """The part `name` of a pipeline, which may be `directory` itself."""
    place = pathlib.Path(directory) / name
    return place if place.is_dir() else pathlib.Path(directory)


def _json(path, directory):
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{directory} is a directory without {path.name}; give a checkpoint file, or a "
            "directory with a UNet2DModel and its scheduler, as save_pretrained writes them."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def _defaults():
    """The fields of a UNet2DModel's configuration with their defaults."""
    parameters = inspect.signature(library().UNet2DModel.__init__).parameters
    return {name: each.default for name, each in parameters.items() if name != "self"}


def _changed(unet):
    """The fields of a UNet2DModel's configuration that are not defaults, except its dropout."""
    return {
        name: unet[name]
        for name, default in _defaults().items()
        if name != "dropout" and json.dumps(unet[name]) != json.dumps(default)
    }
