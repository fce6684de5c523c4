"""What a file was made from: which code, and how two files differ in what made them."""

import functools
import hashlib
import pathlib
import re

from utils import flatten

VERSION = "1.0"
# Names of a `meta` that do not decide: the name of a checkpoint's file, and two of older versions.
NOT_COMPARED = re.compile(r"(.*\.)?(config|checkpoint|classifier|sampling\.batch_size)")
# Names that older files lack; there they may be anything.
OPTIONAL = re.compile(
    r"(.*\.)?(ema|nfe|data|classes|rounds|energy|centered|discrete|precision|sampling\..*)"
)
# What these are where a file of this version does not say it.
DEFAULTS = {"energy": False, "centered": False, "discrete": False, "precision": "fp32"}


def differences(old: dict, new: dict) -> list[str]:
    """What two `meta` disagree about, as ``name=old (now new)``; None: one does not say it."""
    old, new = ({**({} if "config" in meta else DEFAULTS), **flatten(meta)} for meta in (old, new))
    found = []
    for name in sorted(old.keys() | new.keys()):
        both = name in old and name in new
        if NOT_COMPARED.fullmatch(name) or not (both or not OPTIONAL.fullmatch(name)):
            continue
        if not both or _value(old, name) != _value(new, name):
            found.append(f"{name}={old.get(name)} (now {new.get(name)})")
    return found


def _value(meta, name):
    """Older files have the step 0 for a checkpoint without one."""
    return (meta[name] or None) if name.endswith("_step") else meta[name]


@functools.cache
def code_version() -> str:
    """The version, and a hash of the sources as they lie here: commits and local changes alike."""
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    paths = [*root.glob("*.py"), *root.glob("[a-z]*/*.py")]
    for path in sorted(path for path in paths if path.parent.name != "tests"):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"


code_version()  # while the sources are those that run: they may change under a run of weeks
