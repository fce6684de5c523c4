"""What the tests of damaged files share: how a reader must end, and ways to damage bytes."""

import sys

from hypothesis import strategies as st

from utils import UserError

# Audit events of what the code in a hostile file would do; nothing that reads does any of it.
ACTIONS = {
    "os.exec", "os.fork", "os.posix_spawn", "os.system", "socket.connect", "subprocess.Popen",
}  # fmt: skip

_seen, _watching = [], [False]


def _note(event, arguments):
    if _watching[0] and event in ACTIONS:
        _seen.append((event, arguments))


sys.addaudithook(_note)


def reads(read, *arguments):
    """The result of ``read(*arguments)``, or None if it ends with a UserError.

    Fails if it starts a process or opens a connection.
    """
    _watching[0] = True
    try:
        return read(*arguments)
    except UserError:
        return None
    finally:
        _watching[0] = False
        seen, _seen[:] = list(_seen), []
        assert not seen, seen


@st.composite
def spoiled(draw, good):
    """The bytes `good`, cut, overwritten or lengthened in one to four places."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):  # headers are where claims are made
            at = min(at, 64)
        length = draw(st.sampled_from([1, 2, 4, 8, 64]))
        match draw(st.sampled_from(["cut", "flip", "overwrite", "insert", "delete"])):
            case "cut":
                del data[at:]
            case "flip":
                if at < len(data):
                    data[at] ^= draw(st.integers(1, 255))
            case "overwrite":
                data[at : at + length] = draw(st.sampled_from([b"\xff", b"\x00"])) * length
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=length))
            case "delete":
                del data[at : at + length]
    return bytes(data)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
