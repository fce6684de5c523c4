"""What the tests of hostile files share: a watch over the reader, a tally, and ways to spoil bytes.

`reads` is the promise itself: a reader ends with a result or a `UserError`, starts no process,
opens no connection, and takes less than 1 GiB.
"""

import collections
import contextlib
import io
import pathlib
import resource
import sys
import zipfile

from hypothesis import strategies as st

from utils import UserError

GIB = 2**30
# Audit events of what the code in a hostile file would do; nothing that reads does any of it.
ACTIONS = {
    "os.exec", "os.fork", "os.posix_spawn", "os.system", "socket.connect", "subprocess.Popen",
}  # fmt: skip
# Reader -> its malformed inputs, how many of them were refused, and the largest memory in bytes.
TALLY = collections.defaultdict(lambda: [0, 0, 0])

_actions, _watching = [], [False]


def _note(event, arguments):
    if _watching[0] and event in ACTIONS:
        _actions.append((event, arguments))


sys.addaudithook(_note)


def _memory(name):
    """`VmHWM`, `VmRSS` or `VmData` of this process in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


@contextlib.contextmanager
def watched(reader):
    """Fail if what runs inside takes over 1 GiB or does one of `ACTIONS`; count it for `reader`."""
    before = _memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # What is meant to fail must not take the machine along.
    resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + 4 * GIB, hard))
    _watching[0] = True
    try:
        yield
    finally:
        _watching[0] = False
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        seen, _actions[:] = list(_actions), []
    peak = _memory("VmHWM") - before
    TALLY[reader][0] += 1
    TALLY[reader][2] = max(TALLY[reader][2], peak)
    assert not seen, seen
    assert peak < GIB, f"{peak / GIB:.1f} GiB"


def reads(reader, read, *arguments):
    """The result of ``read(*arguments)`` on a malformed input, or None if it was refused well."""
    with watched(reader):
        try:
            result = read(*arguments)
        except UserError as error:
            result = None
            sentence, chain = str(error), error
    if result is not None:
        return result
    TALLY[reader][1] += 1
    assert sentence.strip()
    while chain is not None:  # memory that the machine refused is memory that was asked for
        assert not isinstance(chain, MemoryError)
        assert "allocate" not in str(chain), chain
        chain = chain.__context__
    return None


@st.composite
def spoiled(draw, good):
    """The bytes `good`, cut, overwritten, lengthened or shuffled in one to four places."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):  # headers are where claims are made
            at = min(at, 64)
        length = draw(st.sampled_from([1, 2, 4, 8, 64]))
        match draw(st.sampled_from(["cut", "flip", "extreme", "insert", "delete", "repeat"])):
            case "cut":
                del data[at:]
            case "flip":
                if at < len(data):
                    data[at] ^= draw(st.integers(1, 255))
            case "extreme":
                value = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f"]))
                data[at : at + length] = value * length
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=length))
            case "delete":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length]
    return bytes(data)


@st.composite
def spoiled_member(draw, good, names):
    """The zip archive `good` with one of `names` spoiled, and checksums that are right again."""
    name = draw(st.sampled_from(names))
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        contents = {member: archive.read(member) for member in archive.namelist()}
    contents[name] = draw(spoiled(contents[name]))
    return zipped(contents, draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))


def zipped(contents, compression=zipfile.ZIP_STORED):
    """A zip archive of {name: bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
