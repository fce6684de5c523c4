"""Configurations and flags of any kind: a run that starts, or a sentence."""

import commands
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from strangers import reads

import run_lib
import run_lib_sampling
from storage import settings

DEFAULT = tiny.config("cache")
FIELDS = ["seed"] + [
    f"{section}.{name}"
    for section in DEFAULT
    if isinstance(DEFAULT[section], ConfigDict)
    for name in DEFAULT[section]
]
LEFT_ALONE = {"data.root", "data.cache", "compute.compile"}  # a compiler is a process


def values_like(group, name):
    """Anything that the type of a field lets through, hostile or not."""
    kind = group.get_type(name)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.sampled_from([-(10**12), -1, 0, 1, 2, 3, 7, 10**13, 2**63])
    if kind is float:
        return st.floats() | st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-300, 1e300])
    if kind is str:
        return st.sampled_from(["", "none", "NCSNPP", "a\nb", "../..", "\0"]) | st.text()
    return st.lists(st.sampled_from([-1, 0, 1, 2, 3, 8, 10**9]), max_size=4).map(tuple)


def start(config, workdir):
    """Train for a step and draw samples."""
    run_lib.train(config, workdir)
    run_lib_sampling.sample(config, workdir)
    return True


fields = st.sampled_from([name for name in FIELDS if name not in LEFT_ALONE])


@pytest.mark.slow
@given(data=st.data(), field=fields)
def test_any_value_of_any_field_starts_or_gets_a_sentence(tmp_path_factory, data, field):
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(
        folder.parent / "cache",
        model__nf=4,
        training__n_iters=1,
        eval__num_samples=2,
        eval__num_divisions=1,
    )
    section, _, name = field.rpartition(".")
    group = config[section] if section else config
    value = data.draw(values_like(group, name), label=field)
    # What does something for long is no mistake.
    if field in ("training.n_iters", "eval.num_samples", "model.num_scales"):
        value = min(value, 3)
    group[name] = value
    reads(start, config, str(folder / "run"))


def test_every_number_of_the_configurations_has_a_range():
    names = {f for f in FIELDS if isinstance(number_of(f), int | float | tuple)}
    assert {f for f in names if not isinstance(number_of(f), bool)} - {*settings.RANGES} == set()


def number_of(field):
    section, _, name = field.rpartition(".")
    return (DEFAULT[section] if section else DEFAULT)[name]


FLAGS = st.sampled_from(
    ["--bs", "--balancing_fac", "--slices", "--restore", "--model", "--workdir", "--frobnicate"]
    + [f"--config.{field}" for field in FIELDS]
    + ["--config.", "--config.model", "--config.model.", "--config.optim.lr.x", "--config.none.x"]
)
TEXTS = st.sampled_from(
    ["", "-1", "0", "1e999", "nan", "(", "((1,),)", "None", "__import__('os').system('true')",
     "a\nb", "\x1b[2K", "é", "[" * 1000, "9" * 5000, "1e5", "True", "{}", "lambda: 0"]
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(st.tuples(FLAGS, TEXTS), min_size=1, max_size=2))
def test_any_flag_starts_or_gets_a_sentence(tmp_path_factory, given_flags):
    """Of the command itself, in a process of its own: one line, no traceback, no file."""
    folder = tmp_path_factory.mktemp("flags")
    arguments = [
        *tiny.arguments(folder.parent / "cache", model__nf=4, training__n_iters=1),
        "--workdir=run",
        *(f"{flag}={text}" for flag, text in given_flags),
    ]
    done = commands.command("main.py", folder, arguments)
    if done.returncode != 0:
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr
        (line,) = [text for text in done.stderr.split("\n") if text.startswith("Error: ")]
        assert line.isprintable()
        assert not (folder / "results").exists()
