"""Files that are whole or not there, what made them, and what a workdir records."""

import datetime
import io
import json
import multiprocessing
import os

import numpy as np
import pytest
from raw_data import Calls

from storage.files import atomic_write, is_up_to_date, load_npz, save_npz
from storage.workdir import Workdir
from utils import UserError

META = {"seed": 1, "sampling": {"snr": 0.16}}


def test_a_broken_write_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "file"
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"half", "no bytes"])
    assert list(path.parent.iterdir()) == []
    with atomic_write(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_a_file_is_up_to_date_with_its_settings_alone(tmp_path):
    path = tmp_path / "file.npz"
    assert not is_up_to_date(path, META, "", x=(5,))
    save_npz(path, x=np.arange(5), meta=json.dumps(META))
    assert is_up_to_date(path, META, "", x=(5,))
    with pytest.raises(UserError, match="seed=1"):
        is_up_to_date(path, dict(META, seed=2), "draw anew", x=(5,))
    with pytest.raises(UserError, match="x of shape"):
        is_up_to_date(path, META, "draw anew", x=(6,))
    path.write_bytes(path.read_bytes()[:-40])
    assert not is_up_to_date(path, META, "", x=(5,))


def test_a_workdir_keeps_the_results_of_several_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Workdir("run")
    place.record(nll={"bits_per_dim": 3.0})
    place.record(asym={"nasym": 0.1})
    place.record(nll={"bits_per_dim": 2.0})
    written = json.loads((tmp_path / "results/run/metrics.json").read_text())
    date = datetime.date.today().isoformat()
    assert written["nll"] == {"bits_per_dim": 2.0, "date": date}
    assert written["asym"] == {"nasym": 0.1, "date": date}
    assert Workdir(str(tmp_path / "elsewhere")).root == tmp_path / "elsewhere"


def test_a_workdir_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(UserError, match="a/b"):
        Workdir("a/b").create()


def test_processes_that_record_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(4)

    def record(process):
        ready.wait()
        for number in range(5):
            Workdir("run").record(**{f"{process}-{number}": {}})

    processes = [fork.Process(target=record, args=(i,)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(Workdir("run").recorded()) == 20


def saved(save, *arguments, **arrays):
    """The bytes that `save`, such as np.savez, writes."""
    file = io.BytesIO()
    save(file, *arguments, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        saved(np.savez, samples=np.array([Calls(os.abort)], dtype=object)),
        saved(np.savez, samples=np.array([1, np.nan])),
        saved(np.savez, other=np.zeros(3)),
        saved(np.savez, samples=np.zeros(99))[:-40],
        saved(np.save, np.zeros(3)),
        b"text",
    ],
)
def test_what_is_no_npz_of_numbers_is_refused(tmp_path, content):
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        load_npz(path, "samples")
