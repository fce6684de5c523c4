"""The version of the code, and differences between the settings of two files."""

import functools
import hashlib
import pathlib
import re

from utils import VERSION, flatten

# Files of the same weights may have other names.
NAMES_OF_FILES = re.compile(r"(.*\.)?(checkpoint|classifier)")


def differences(old: dict, new: dict) -> list[str]:
    """Fields in which two `meta` differ, as ``name=old (now new)``; None where one lacks it."""
    old, new = flatten(old), flatten(new)
    return [
        f"{name}={old.get(name)} (now {new.get(name)})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not NAMES_OF_FILES.fullmatch(name)
    ]


@functools.cache
def code_version() -> str:
    """The version, and a hash of the sources, local changes included."""
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    paths = [*root.glob("*.py"), *root.glob("[a-z]*/*.py")]
    for path in sorted(path for path in paths if path.parent.name != "tests"):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"


code_version()  # at import: the sources may change during a long run
