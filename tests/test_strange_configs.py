"""Configurations and flags of any kind: a run that starts, or a sentence."""

import pytest
import tiny
from commands import command
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from strangers import TALLY, reads

import cli
import config_ranges
import run_lib
import run_lib_sampling
from test_cli import CONFIGS

DEFAULT = tiny.config("cache")
FIELDS = ["seed"] + [
    f"{section}.{name}"
    for section in DEFAULT
    if isinstance(DEFAULT[section], ConfigDict)
    for name in DEFAULT[section]
]
LEFT_ALONE = {"data.root", "data.cache"}


def values_like(value):
    """Anything that the type of a field lets through, hostile or not."""
    match value:
        case bool():
            return st.booleans()
        case int() | None:
            return st.sampled_from([-(10**12), -1, 0, 1, 2, 3, 7, 10**13, 2**63])
        case float():
            return st.floats() | st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-300, 1e300])
        case str():
            return st.sampled_from(["", "none", "NCSNPP", "a\nb", "../..", "\0", value]) | st.text()
    return st.lists(st.sampled_from([-1, 0, 1, 2, 3, 8, 10**9]), max_size=4).map(tuple)


def start(config, workdir):
    """Check, train for a step and draw a sample."""
    config_ranges.check(config)
    run_lib.train(config, workdir)
    run_lib_sampling.sample(config, workdir)
    return True


fields = st.sampled_from([name for name in FIELDS if name not in LEFT_ALONE])


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
    value = data.draw(values_like(group[name]), label=field)
    # What does something for long is no mistake.
    if field in ("training.n_iters", "eval.num_samples", "model.num_scales"):
        value = min(value, 3)
    group[name] = value
    reads("configuration", start, config, str(folder / "run"))
