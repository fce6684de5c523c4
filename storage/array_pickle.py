"""Reads pickles of plain NumPy arrays from anybody without trusting anything in them.

A pickle is a program: it names functions and calls them. Here the names that NumPy's arrays and
numbers are pickled under stand for the small classes and functions below, every other name is
refused, and NumPy itself never sees the program's arguments. That matters beyond running code: a
dtype with forged flags makes NumPy follow pointers that the file chose, and C's unpickler takes
whatever memory the file asks for.
"""

import math
import mmap
import os
import pickle
import re
import struct
from typing import Any, ClassVar

import numpy as np

from utils import UserError

PLAIN_DTYPE = re.compile("[iuf][1248]")


class Dtype:
    """What ``numpy.dtype`` means in a pickle: a type of whole or real numbers, `value`."""

    def __init__(self, name: object, align: bool = False, copy: bool = True) -> None:
        if not (isinstance(name, str) and PLAIN_DTYPE.fullmatch(name)):
            raise UserError("it holds something else than whole and real numbers.")
        self.value = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        """Take the byte order of (version, byte order, …), which may hold nothing beside it."""
        order, *structure = state[1:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
            raise UserError("it describes a structured type; expected plain numbers.")
        self.value = self.value.newbyteorder(order)


class Array:
    """What an array is until its state arrives: (version, shape, dtype, Fortran order, bytes)."""

    def __init__(self, kind: object, shape: object, code: object) -> None:
        self.value = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def scalar(dtype: Dtype, content: bytes | str) -> int | float:
    """What a NumPy number is pickled as: its type and its bytes; a Python number."""
    content = content.encode("latin1") if isinstance(content, str) else content
    return _array(content, dtype, (), "C").item()


def _array(content, dtype, shape, order, axis_order=None):
    """An array over the bytes `content`, of which it must have exactly as many."""
    if math.prod(shape) * dtype.value.itemsize != len(content) or min(shape, default=0) < 0:
        raise UserError(f"it describes an array of {len(content)} bytes as one of shape {shape}.")
    return np.frombuffer(content, dtype.value).reshape(shape, order=order)


def _encode_latin1(text, encoding):
    """``_codecs.encode`` as Python 3 uses it to write bytes in an old protocol, and only so."""
    if encoding != "latin1":
        raise UserError(f"it encodes text as {encoding!r}; expected latin1.")
    return text.encode("latin1")


def _no_bytes():
    """``bytes()`` as Python 3 writes empty bytes in an old protocol; a number would be a length."""
    return b""


NAMES = {
    ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): None,  # only ever the first argument of `_reconstruct`
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy._core.numeric", "_frombuffer"): _array,
    ("_codecs", "encode"): _encode_latin1,
    ("__builtin__", "bytes"): _no_bytes,
}


# Python's own unpickler in Python, because C's makes room for what the file announces: nine
# bytes that number the two billionth entry of its table take 32 GiB.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module, name):
        today = module.replace("numpy.core", "numpy._core")  # as NumPy 2 calls it
        try:
            return NAMES[today, name]
        except KeyError:
            raise UserError(
                f"it names {module}.{name}, which could run code; expected NumPy arrays, dicts, "
                "lists, strings and numbers only. Fetch the published file again."
            ) from None

    def load_build(self):
        """Give a state to `Dtype` or `Array`; on anything else it would set attributes."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Dtype | Array):
            raise UserError("it changes something else than an array or its type.")
        self.stack[-1].__setstate__(state)

    def load_bytearray8(self):
        """Bytes, as long as the file has them, not room for as many as it announces."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def load(path: str | os.PathLike) -> Any:
    """Unpickle dicts, lists, strings, numbers and NumPy arrays; names in dicts come as str.

    Arrays are found as values of the outermost dict, and are read-only.

    Raises:
        UserError: the file is no whole pickle, or names anything else (which could run code).
    """
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            content = _Unpickler(content, encoding="latin1").load()  # as Python 2's arrays need
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can make the unpickler raise nearly anything
        raise UserError(
            f"{path} is not a whole pickle ({type(error).__name__}: {error}). Fetch it again."
        ) from None
    if not isinstance(content, dict):
        return content
    return {
        key.decode(errors="replace") if isinstance(key, bytes) else key: (
            value.value if isinstance(value, Array) else value
        )
        for key, value in content.items()
    }
