"""What files say of their origin, and what counts as another."""

import shutil
import subprocess
import sys

import tiny

from storage.provenance import SOURCES, VERSION, code_version, differences


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
    aside = {
        "tests",
        "benchmarks",
        "demo",
        "experiments",
        "soak",
        "configs",
        "results",
        "pretrained",
    }
    folders = {path.parent.name for path in tiny.ROOT.glob("[a-z]*/*.py")} - aside
    assert {*SOURCES} == {".", *folders}


def test_differences_are_named_with_both_values():
    old = {"seed": 1, "sampling": {"snr": 0.1, "batch_size": 3}}
    new = {"seed": 1, "sampling": {"snr": 0.2, "batch_size": 4}, "checkpoint": "checkpoint.pth"}
    assert differences(old, new) == ["sampling.snr=0.1 (now 0.2)"]
    assert differences(old, old | {"ema": True}) == []
    assert differences(old, old | {"energy": True}) == ["energy=False (now True)"]
    # An earlier version said so in the hash of its configuration, which is not compared.
    assert differences(old | {"config": "a"}, old | {"energy": True}) == []
