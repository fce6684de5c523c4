"""What files say of their origin, and what counts as another."""

import shutil
import subprocess
import sys

import tiny

from storage.provenance import SOURCES, VERSION, code_version, config_hash, differences


def test_any_change_of_the_sources_is_another_version(tmp_path):
    """Of a copy of the module beside other sources, in processes of their own."""
    (tmp_path / "models").mkdir()
    (tmp_path / "storage").mkdir()
    shutil.copy(tiny.ROOT / "storage" / "provenance.py", tmp_path / "storage")

    def version():
        script = "from storage import provenance; print(provenance.code_version())"
        return subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    found = [version()]
    (tmp_path / "models" / "net.py").write_text("x = 1")
    found += [version(), version()]
    (tmp_path / "models" / "net.py").write_text("x = 2")
    found.append(version())
    assert found[1] == found[2]
    assert len(set(found)) == 3
    assert all(name.startswith(f"{VERSION}+") for name in [*found, code_version()])


def test_every_folder_of_sources_counts():
    """All that hold modules, but for what tests, measures or demonstrates them."""
    aside = {"tests", "studies", "scripts", "configs", "results", "pretrained"}
    folders = {path.parent.name for path in tiny.ROOT.glob("[a-z]*/*.py")} - aside
    assert {*SOURCES} == {".", *folders}


def test_the_hash_of_a_configuration_tells_models_and_data_apart_but_not_places():
    known = config_hash(tiny.config("cache"))
    assert config_hash(tiny.config("elsewhere", data__root="there", device="cuda")) == known
    assert config_hash(tiny.config("cache", model__energy=True)) != known
    assert config_hash(tiny.config("cache", data__centered=True)) != known


def test_differences_are_named_and_a_missing_hash_is_none():
    old = {"seed": 1, "config": "a"}
    assert differences(old, {"seed": 2, "config": "b"}) == ["config", "seed"]
    assert differences(old, {"seed": 1}) == []
    assert differences({"seed": 1}, old) == []
    assert differences(old, {**old, "sde": "VE"}) == ["sde"]
