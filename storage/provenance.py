"""What a file was made from: which code, and how two files differ in what made them."""

import functools
import hashlib
import pathlib

from utils import flatten

VERSION = "1.0"
# The folders of the sources that files are made by.
SOURCES = (
    *(".", "metrics", "models", "planning", "readers", "samplers", "storage", "sweeps"),
    "training",
)

# Names of a `meta` that do not decide: the name of a checkpoint's file, and two of older versions.
NOT_COMPARED = {"config", "checkpoint", "sampling.batch_size"}
# What is meant where a file does not say it; older files, which hold a hash of it, do not.
DEFAULTS = {"energy": False, "centered": False, "discrete": False, "precision": "fp32"}


def differences(old: dict, new: dict) -> list[str]:
    """What two `meta` disagree about, as ``name=old (now new)``.

    Names that one of them lacks, as files of earlier versions do, are not compared.
    """
    old, new = ({**({} if "config" in meta else DEFAULTS), **flatten(meta)} for meta in (old, new))
    return [
        f"{name}={old[name]} (now {new[name]})"
        for name in sorted((old.keys() & new.keys()) - NOT_COMPARED)
        if old[name] != new[name]
    ]


@functools.cache
def code_version() -> str:
    """The version, and a hash of the sources as they lie here: commits and local changes alike."""
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in root.glob(f"{folder}/*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"


code_version()  # while the sources are those that run: they may change under a run of weeks
