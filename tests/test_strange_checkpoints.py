"""Checkpoints from strangers: whatever is in the file, it loads whole or gets a sentence."""

import io
import os
import pickle
import struct
import zipfile

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from strangers import Calls, reads, spoiled, spoiled_member, zipped
from test_checkpoints import assert_equal

import losses
import models
from models.ema import EMA
from storage import checkpoints


def tiny_state():
    torch.manual_seed(0)
    config = tiny.config("cache", model__nf=4)
    model = models.create_model(config)
    optimizer = losses.make_optimizer(list(model.parameters()), config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return checkpoints.TrainState(model, EMA(model.parameters(), 0.9), optimizer, 3, 48), config


STATE, CONFIG = tiny_state()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("strangers") / "checkpoint.pth"


def written(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def good_bytes():
    file = io.BytesIO()
    torch.save(checkpoints.content_of(STATE, CONFIG), file)
    return file.getvalue()


GOOD = good_bytes()
CONTENT = torch.load(io.BytesIO(GOOD), weights_only=True)
NAMES = list(CONTENT["model"])
with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
    PICKLED, *_ = [name for name in archive.namelist() if name.endswith("data.pkl")]
    MEMBERS = {name: archive.read(name) for name in archive.namelist()}


def load(path):
    """Load a checkpoint as training does; its content."""
    content = checkpoints.read(path)
    checkpoints.require_kind(content, path, "score model")
    checkpoints.load_training(STATE, content, path)
    return content


def check_refused_or_sound(path, content):
    path.write_bytes(content)
    found = reads("checkpoint", load, path)
    tensors = [*STATE.model.state_dict().values(), *STATE.ema.shadow]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert 0 <= STATE.step < 2**62
    return found


@given(spoiled(GOOD))
def test_a_spoiled_checkpoint_is_refused_or_unharmed(path, content):
    """Whatever was changed, it was no weight: those have checksums."""
    found = check_refused_or_sound(path, content)
    if found is not None:
        assert_equal(found, CONTENT)


@given(spoiled_member(GOOD, [PICKLED]))
def test_a_forged_checkpoint_is_refused_or_sound(path, content):
    check_refused_or_sound(path, content)


tensors = st.builds(
    torch.full,
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([0.0, float("nan"), float("inf"), -1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
) | st.just(torch.zeros(2, dtype=torch.int64))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["step", "params", "exp_avg", "exp_avg_sq", "state", 0, 1]), inner
    ),
    max_leaves=5,
)  # fmt: skip


def changed(content, place, value):
    """A copy of nested dicts and lists with one entry replaced."""
    if not place:
        return value
    first, *rest = place
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[first] = changed(content[first], rest, value)
    return copy


PLACES = [
    ["model"],
    *(["model", name] for name in (NAMES[1], NAMES[-1])),
    *([name] for name in ("ema", "optimizer", "step", "position", "seed", "config")),
    *(["ema", name] for name in ("decay", "num_updates", "shadow_params")),
    ["ema", "shadow_params", 2],
    ["optimizer", "state"],
    ["optimizer", "param_groups"],
    ["optimizer", "state", 0],
    *(["optimizer", "state", 0, name] for name in ("step", "exp_avg", "exp_avg_sq")),
]


@given(st.sampled_from(PLACES), values)
def test_anything_where_something_else_belongs(path, place, value):
    check_refused_or_sound(path, written(changed(CONTENT, place, value)))


def with_pickle(content):
    return zipped({**MEMBERS, PICKLED: content})


def weight(value):
    return written(changed(CONTENT, ["model", NAMES[1]], value))


def like(**more):
    return torch.zeros_like(CONTENT["model"][NAMES[1]], **more)


def lying_directory():
    """The archive's directory says that one member has four gigabytes."""
    content = bytearray(GOOD)
    at = content.rindex(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    return bytes(content)


def overlapping():
    """A hundred names for the bytes of one member, each of them as long as it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
        archive.writestr("checkpoint/data/zeros", bytes(10**6))
        last = archive.infolist()[-1]
        for number in range(100):
            other = zipfile.ZipInfo(f"checkpoint/data/zeros{number}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, field, getattr(last, field))
            archive.filelist.append(other)
    return file.getvalue()


def bytearray_of(count):
    return b"\x80\x02}X\x05\x00\x00\x00modelc__builtin__\nbytearray\n(J" + (
        struct.pack("<i", count) + b"tRs."
    )


HOSTILE = {
    "code": lambda: written(changed(CONTENT, ["seed"], Calls(os.system, "true"))),
    "code in an old pickle": lambda: pickle.dumps({"model": Calls(os.system, "true")}),
    "an old format": lambda: old_format(),
    "a long bytearray": lambda: with_pickle(bytearray_of(2**31 - 1)),
    "a long bytearray by today's name": lambda: with_pickle(
        bytearray_of(2**31 - 1).replace(b"__builtin__", b"builtins")
    ),
    "a set": lambda: written(changed(CONTENT, ["seed"], {1})),
    "a tensor without memory": lambda: weight(like(device="meta")),
    "a sparse tensor": lambda: weight(like().to_sparse()),
    "complex": lambda: weight(like(dtype=torch.complex64)),
    "whole numbers": lambda: weight(like(dtype=torch.int64)),
    "one number, many times": lambda: weight(torch.zeros(1).expand(2**40)),
    "nan": lambda: weight(like().fill_(float("nan"))),
    "nan in the averages": lambda: written(
        changed(CONTENT, ["ema", "shadow_params", 0], CONTENT["ema"]["shadow_params"][0] / 0)
    ),
    "compressed": lambda: zipped(MEMBERS, zipfile.ZIP_DEFLATED),
    "compressed zeros": lambda: zipped(
        {**MEMBERS, "checkpoint/data/0": bytes(2**28)}, zipfile.ZIP_DEFLATED
    ),
    "a lying directory": lying_directory,
    "overlapping members": overlapping,
    "two pickles": lambda: zipped({**MEMBERS, "other/data.pkl": MEMBERS[PICKLED]}),
    "names that are no text": lambda: written({"model": {7: torch.zeros(1)}}),
    "a step of five thousand digits": lambda: written(changed(CONTENT, ["step"], 10**5000)),
    "a step that is no number": lambda: written(changed(CONTENT, ["step"], float("nan"))),
    "infinitely many averages": lambda: written(
        changed(CONTENT, ["ema", "num_updates"], float("inf"))
    ),
    "deep": lambda: with_pickle(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    "empty": lambda: b"",
    "zeros": lambda: bytes(1000),
    "an empty archive": lambda: zipped({}),
}


def old_format():
    """What torch.save wrote before version 1.6: no archive that could be looked at beforehand."""
    file = io.BytesIO()
    torch.save(CONTENT, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_checkpoint_gets_a_sentence(path, kind):
    assert check_refused_or_sound(path, HOSTILE[kind]()) is None


def test_newlines_in_names_make_no_second_sentence(path, capsys):
    import cli

    name = "a\nError: all is well\x1b[2K"
    content = changed(CONTENT, ["model"], {**CONTENT["model"], name: torch.zeros(1)})
    path.write_bytes(written(content))
    with pytest.raises(checkpoints.UserError) as caught:
        load(path)
    with pytest.raises(SystemExit):
        cli.fail(caught.value)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "all is well" in line
