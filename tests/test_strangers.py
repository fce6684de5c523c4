"""Array files, pickles and IDX files from strangers: a sentence or what was meant, nothing else."""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from raw_data import random_images
from strangers import TALLY, Calls, reads, spoiled, spoiled_member, zipped
from test_readers import GOOD as GOOD_IDX
from test_readers import numpy1_names, python2_pickle

import run_lib_cas
from metrics import nll_and_asym
from readers import imagenet32
from readers.idx import read_idx
from storage import array_pickle, files
from storage.files import save_npz, to_json
from storage.workdir import Workdir
from utils import UserError

SHAPE, CLASSES = (3, 32, 32), 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strangers")


def write(folder, content, name="file"):
    path = folder / name
    path.write_bytes(content)
    return path


def npz(**arrays):
    """The bytes of an ``.npz``."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(descr="|u1", shape=(4,), content=b"abcd"):
    """An ``.npy`` with any header."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def same(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- .npz

ARRAYS = {"samples": random_images(3, 4, 4, 1), "nfe": np.array(7), "meta": np.array('{"a": 1}')}
GOOD_NPZ = npz(**ARRAYS)
MEMBERS = [f"{name}.npy" for name in ARRAYS]


@given(spoiled(GOOD_NPZ))
def test_a_spoiled_npz_is_refused_or_unharmed(folder, content):
    """Whatever was changed, it was no array's byte: those have checksums."""
    found = reads("npz", files.load_npz, write(folder, content), *ARRAYS)
    for name in found or ():
        same(found[name], ARRAYS[name])


@given(spoiled_member(GOOD_NPZ, MEMBERS))
def test_a_forged_npz_is_refused_or_plain(folder, content):
    found = reads("npz", files.load_npz, write(folder, content), *ARRAYS)
    for array in (found or {}).values():
        assert array.dtype.kind in "biufU"
        assert array.nbytes < 2**20


def bomb_of_zeros(count):
    """An ``.npz`` of a thousandth of the size that its array truly has."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("samples.npy", "w") as member,
    ):
        member.write(npy(shape=(count,), content=b""))
        for _ in range(count // 2**20):
            member.write(bytes(2**20))
    return file.getvalue()


def claiming_npz(size):
    """An ``.npz`` whose directory says that a member is `size` bytes long."""
    content = bytearray(zipped({"samples.npy": npy(shape=(size - 128,))}))
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", size)
    return bytes(content)


HOSTILE_NPZ = {
    "terabytes": zipped({"samples.npy": npy(shape=(2**42,))}),
    "overflow": zipped({"samples.npy": npy(shape=(2**32, 2**32))}),
    "negative": zipped({"samples.npy": npy(shape=(-1, 4))}),
    "zeros": bomb_of_zeros(2**29),
    "directory": claiming_npz(2**32 - 2),
    "objects": npz(samples=np.array([{}], dtype=object)),
    "code": zipped({"samples.npy": npy("|O", (1,), pickle.dumps([Calls(os.system, "true")]))}),
    "structured": npz(samples=np.zeros(4, "u1,O")),
    "void": npz(samples=np.zeros(4, "V8")),
    "times": npz(samples=np.zeros(4, "M8[s]")),
    "nested header": zipped({"samples.npy": npy("(" * 9000)}),
    "long type": zipped({"samples.npy": npy(("|u1", (2**40,)), (1,))}),
    "nan": npz(samples=np.array([1, np.nan])),
    "infinity": npz(samples=np.array([1, np.inf], np.float32)),
    "more than its header says": zipped({"samples.npy": npy(content=b"abcdef")}),
    "less than its header says": zipped({"samples.npy": npy(content=b"abc")}),
    "an .npy": npy(),
    "bzip2": zipped({"samples.npy": npy()}, zipfile.ZIP_BZIP2),
    "empty": b"",
    "text": b"no archive",
    "another array": npz(other=np.zeros(3)),
}


@pytest.mark.parametrize("kind", HOSTILE_NPZ)
def test_a_hostile_npz_gets_a_sentence(folder, kind):
    assert reads("npz", files.load_npz, write(folder, HOSTILE_NPZ[kind]), "samples") is None


arrays = hnp.arrays(
    st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unicode_string_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
)


@given(arrays)
def test_samples_of_another_kind_are_not_taken(folder, array):
    config = tiny.config(folder)
    config.eval.num_samples_all = 3
    save_npz(folder / "samples" / "0" / "samples_0.npz", samples=array)
    fits = array.dtype == np.uint8 and array.shape[1:] == (8, 8, 1)
    taken = reads("samples", run_lib_cas.read_samples, config, folder / "samples", 1)
    assert taken is None or fits


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
metas = st.one_of(
    json_values.map(to_json),
    st.text(max_size=20),
    st.fixed_dictionaries({"images": json_values, "batch_size": json_values}).map(to_json),
    st.just(to_json({"images": 3, "batch_size": 5})),
    st.just("[" * 100000),
)


@given(array=arrays, meta=metas)
def test_bits_of_strangers(folder, array, meta):
    place = Workdir(str(folder / "nll"))
    place.metrics.unlink(missing_ok=True)
    save_npz(place.nll(0), bpd=array, nfe=np.array(3), meta=meta)
    result = reads("nll", nll_and_asym.read_nll, place.name)
    if result is not None:
        assert np.isfinite(result["bits_per_dim"])
        assert array.size == json.loads(meta)["images"]


@given(first=arrays, second=arrays, times=arrays)
def test_asymmetries_of_strangers(folder, first, second, times):
    place = Workdir(str(folder / "asym"))
    place.metrics.unlink(missing_ok=True)
    save_npz(place.asym(0), asym=first, nasym=second, times=times, meta="{}")
    result = reads("asym", nll_and_asym.read_asym, place.name)
    assert result is None or np.isfinite(result["asym"] + result["nasym"])


# ---------------------------------------------------------------- ImageNet's pickles

IMAGES = random_images(2, 3072)
GOOD_PICKLES = [
    *(pickle.dumps({"data": IMAGES, "labels": [1, 9]}, protocol=n) for n in (2, 4, 5)),
    pickle.dumps({"data": IMAGES, "labels": np.array([1, 9])}),
    numpy1_names(IMAGES),
    python2_pickle(IMAGES, [1, 9]),
]


def imagenet(path):
    return imagenet32._imagenet_block(path, SHAPE, CLASSES)


def check_block(block):
    if block is not None:
        assert block.images.dtype == np.uint8
        assert block.images.shape == (len(block.labels), *SHAPE)
        assert all(0 <= label < CLASSES for label in block.labels)


@given(st.sampled_from(GOOD_PICKLES).flatmap(spoiled))
def test_a_spoiled_pickle_is_refused_or_images(folder, content):
    check_block(reads("pickle", imagenet, write(folder, content)))


objects = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=5)
    | st.text(max_size=5) | arrays | st.integers(-5, 2000).map(np.int64),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner)
    | st.dictionaries(st.sampled_from(["data", "labels", b"data", 3]), inner),
    max_leaves=6,
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["data", b"data", "labels"]), objects) | objects,
    st.integers(0, 5),
)
def test_a_pickle_of_something_else_is_refused(folder, value, protocol):
    check_block(reads("pickle", imagenet, write(folder, pickle.dumps(value, protocol))))


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


FORGED_DTYPE = (
    global_("numpy", "dtype") + b"(S'V8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\nt}S'a'\n("
    + global_("numpy", "dtype") + b"(S'O8'\nI0\nI1\ntRI0\ntsI8\nI1\nI0\ntb"
)  # fmt: skip
FORGED_NUMBER = (
    global_("numpy._core.multiarray", "scalar") + b"(" + FORGED_DTYPE
    + global_("_codecs", "encode") + b"(X\x08\x00\x00\x00AAAAAAAAS'latin1'\ntRtR"
)  # fmt: skip
PIECES = [bytes([code]) for code in b"(.0123NRbdeloqstu)]}\x81\x85\x86\x87\x88\x89\x8f\x90\x93\x94"]
PIECES += [
    global_("numpy", "dtype"), global_("numpy", "ndarray"), global_("_codecs", "encode"),
    global_("numpy.core.multiarray", "_reconstruct"), global_("numpy.core.multiarray", "scalar"),
    global_("numpy._core.numeric", "_frombuffer"), global_("os", "system"),
    global_("builtins", "eval"), b"U\x02u1", b"U\x01b", b"U\x06latin1", b"U\x04echo", b"K\x00",
    b"K\x01", b"K\x03", b"J\xff\xff\xff\xff", b"\x8a\x06" + b"\xff" * 5 + b"\x7f", b"q\x00",
    b"h\x00", b"C\x04abcd", b"\x96" + b"\xff" * 7 + b"\x00", b"\x8e" + b"\xff" * 7 + b"\x00",
    b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"\x95" + b"\xff" * 8,
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_program_of_a_pickle_is_harmless(folder, pieces):
    content = b"\x80\x05" + b"".join(pieces) + b"."
    check_block(reads("pickle", imagenet, write(folder, content)))


def shared_lists(depth):
    value = [1] * 1000
    for _ in range(depth):
        value = [value] * 1000
    return value


HOSTILE_PICKLES = {
    "code": pickle.dumps({"data": Calls(os.system, "true")}),
    "code by name": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "code by an instance": b"(S'true'\nios\nsystem\n.",
    "a far entry of the memo": b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "a long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "a long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "a long string": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "a long number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "an array of objects": pickle.dumps({"data": np.array([{}], dtype=object), "labels": [1]}),
    "room for an array": (
        global_("numpy", "ndarray") + b"(\x8a\x06" + struct.pack("<Q", 2**40)[:6] + b"\x85tR."
    ),
    "lists of one list": pickle.dumps({"data": IMAGES, "labels": shared_lists(3)}),
    "strings of one string": pickle.dumps({"data": IMAGES, "labels": ["x" * 10**6] * 10**5}),
    "a forged type": b"\x80\x02}X\x06\x00\x00\x00labels](" + FORGED_NUMBER * 2 + b"es.",
    "a changed function": global_("_codecs", "encode") + b"N}S'__defaults__'\nNs\x86b.",
    "deep": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "a huge label": pickle.dumps({"data": IMAGES, "labels": [10**5000, 1]}),
    "a negative label": pickle.dumps({"data": IMAGES, "labels": [-1, 1]}),
    "unsigned labels": pickle.dumps({"data": IMAGES, "labels": np.array([2**64 - 1, 1], "u8")}),
    "half a label": pickle.dumps({"data": IMAGES, "labels": np.array([1.5, 1])}),
    "no name": pickle.dumps({b"\xff\xfe": IMAGES}),
    "empty": b"",
}


@pytest.mark.parametrize("kind", HOSTILE_PICKLES)
def test_a_hostile_pickle_gets_a_sentence(folder, kind):
    assert reads("pickle", imagenet, write(folder, HOSTILE_PICKLES[kind])) is None


def test_arrays_in_either_order_and_of_either_end(folder):
    """The stand-ins give what NumPy's own functions give."""
    for array in (
        np.asfortranarray(IMAGES),
        IMAGES.astype(">i4"),
        IMAGES[:, :4] / 3,
        IMAGES[0, :0],
    ):
        for protocol in range(2, 6):
            path = write(folder, pickle.dumps({"a": array}, protocol))
            same(array_pickle.load(path)["a"], array)


# ---------------------------------------------------------------- IDX


def idx(path):
    return read_idx(path, (28, 28))


@pytest.mark.parametrize("name", ["plain", "file.gz"])
@given(content=spoiled(GOOD_IDX), zipped_after=st.booleans())
def test_a_spoiled_idx_is_refused_or_images(folder, name, content, zipped_after):
    if name.endswith(".gz") and zipped_after:
        content = gzip.compress(content, 1)
    images = reads("idx", idx, write(folder, content, name))
    if images is not None:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (28, 28)


@given(spoiled(gzip.compress(GOOD_IDX, 1)))
def test_a_spoiled_gzip_is_refused_or_unharmed(folder, content):
    images = reads("idx", idx, write(folder, content, "file.gz"))
    assert images is None or images.tobytes() == GOOD_IDX[16:]


def gzip_of_zeros(count):
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 28, 28)
    return gzip.compress(header + bytes(count * 784))


HOSTILE_IDX = {
    "terabytes": ("plain", bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 28, 28)),
    "zipped terabytes": ("a.gz", gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 4 + GOOD_IDX[8:])),
    "zeros": ("b.gz", gzip_of_zeros(500_000)),
    "other dimensions": ("plain", bytes([0, 0, 8, 255]) + b"\xff" * 1020),
    "floats": ("plain", bytes([0, 0, 13, 3]) + GOOD_IDX[4:]),
}


@pytest.mark.parametrize("kind", HOSTILE_IDX)
def test_a_hostile_idx_gets_a_sentence(folder, kind):
    name, content = HOSTILE_IDX[kind]
    assert reads("idx", idx, write(folder, content, name)) is None


def test_the_watch_sees_what_it_watches_for():
    """Code that runs, memory that is taken or asked for, and an error that is no sentence."""

    def refuse_for_memory():
        try:
            bytearray(2**45)
        except MemoryError:
            raise UserError("Too large.") from None

    faults = [
        (AssertionError, lambda: os.system("true")),
        (AssertionError, lambda: len(bytearray(5 * 2**28))),
        (AssertionError, refuse_for_memory),
        (ValueError, lambda: int("x")),
    ]
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    for error, fault in faults:
        with pytest.raises(error):
            reads("none", fault)
    assert resource.getrlimit(resource.RLIMIT_DATA) == limit
    del TALLY["none"]  # these were no inputs
