"""What files say of their origin, and what counts as another."""

from storage.provenance import VERSION, code_version, differences


def test_files_name_the_version_and_the_sources():
    assert code_version().startswith(f"{VERSION}+")


def test_differences_are_named_with_both_values():
    old = {"seed": 1, "sampling": {"snr": 0.1, "batch_size": 3}}
    new = {"seed": 1, "sampling": {"snr": 0.2, "batch_size": 4}, "checkpoint": "checkpoint.pth"}
    assert differences(old, new) == ["sampling.snr=0.1 (now 0.2)"]
    assert differences(old, old | {"ema": True}) == []
    assert differences(old, old | {"energy": True}) == ["energy=False (now True)"]
    # An earlier version said so in the hash of its configuration, which is not compared.
    assert differences(old | {"config": "a"}, old | {"energy": True}) == []


def test_older_files_say_step_0_where_the_checkpoint_has_none():
    assert differences({"checkpoint_step": 0}, {"checkpoint_step": None}) == []
    assert differences({"checkpoint_step": 1}, {"checkpoint_step": None})
    assert differences({"seed": 0}, {"seed": None})
