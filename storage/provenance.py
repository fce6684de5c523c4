"""What a file was made from, in short: which code, and which configuration of data and model."""

import functools
import hashlib
import json
import pathlib

import ml_collections

VERSION = "1.0"
# The folders of the sources that files are made by.
SOURCES = (
    *(".", "metrics", "models", "planning", "readers", "samplers", "storage", "sweeps"),
    "training",
)


def differences(old: dict, new: dict) -> list[str]:
    """The names of what two `meta` disagree about.

    The oldest files have no `config`, and are compared by the rest.
    """
    compared = {*old, *new}
    if not {"config"} <= old.keys() & new.keys():
        compared -= {"config"}
    return sorted(name for name in compared if _value(old, name) != _value(new, name))


def _value(meta, name):
    """Older files have the step 0 for a checkpoint without one."""
    return (meta.get(name) or None) if name.endswith("_step") else meta.get(name)


@functools.cache
def code_version() -> str:
    """The version, and a hash of the sources as they lie here: commits and local changes alike."""
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in root.glob(f"{folder}/*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"


code_version()  # while the sources are those that run: they may change under a run of weeks


def config_hash(config: ml_collections.ConfigDict) -> str:
    """A short hash of what a configuration says of data and model, wherever their files lie."""
    content = {
        section: {
            name: value
            for name, value in config[section].to_dict().items()
            # What is not set has no entry: a field that is new and none changes no hash.
            if value is not None and name not in ("root", "cache") and not name.endswith("_path")
        }
        for section in ("data", "model")
    }
    # Where the computation is coarser than the published one; what is exact has no entry.
    if config.compute.precision != "fp32":
        content["precision"] = config.compute.precision
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
