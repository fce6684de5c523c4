"""Kills, full disks, read-only directories, races and jumping clocks, put upon real commands."""

import errno
import fcntl
import itertools
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import tqdm.std
from commands import command, start
from faults import (
    COMMANDS,
    EVALUATION,
    SMALL,
    Scene,
    base_of,
    begin,
    finish,
    leftovers,
    mounted,
    tree,
)
from test_checkpoints import assert_equal

from storage import checkpoints, files


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def scene(tmp_path, bases, name):
    return Scene(name, base_of(name, bases), tmp_path, random.Random(name))


@pytest.fixture(scope="module")
def trained(bases):
    """A directory in which the training command has come to its end."""
    return base_of("sampling", bases)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_a_command_ends_with_the_same_bytes(scene):
    while scene.kills < 8:
        scene.kill_until_finished()


# ---------------------------------------------------------------- a full disk


def check_sentence(done):
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    return line


def test_a_full_disk_stops_training_which_goes_on_with_space_back(tmp_path, trained):
    """Wherever the disk is full: at the data, the log, the scalars or a checkpoint."""
    (tmp_path / "base").mkdir()
    with mounted(tmp_path / "disk", "size=8m") as disk:
        if disk is None:
            pytest.skip("this process may not mount a file system")
        size = sum(len(content) for content in tree(trained).values())
        for share in (0.02, 0.3, 0.8):
            for path in disk.iterdir():
                subprocess.run(["rm", "-r", str(path)], check=True)
            resize(disk, int(share * size))
            line = check_sentence(command(COMMANDS["training"], tmp_path, [*SMALL, *on(disk)]))
            assert "No space left" in line or "cannot be written" in line, line
            newest = disk / "W/checkpoints/checkpoint.pth"
            for path in disk.rglob("*.pth"):
                checkpoints.read(path)
            assert leftovers(disk) == []
            if share == 0.8:
                assert checkpoints.read(newest)["step"] in (2, 4)
            resize(disk, 8 * 2**20)
            done = command(COMMANDS["training"], tmp_path, [*SMALL, *on(disk)])
            assert done.returncode == 0, done.stderr
            check_weights(newest, trained / "results/W/checkpoints/checkpoint.pth")


def on(disk):
    return [f"--workdir={disk}/W", f"--config.data.cache={disk}/cache"]


def resize(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(disk)], check=True)


def check_weights(path, expected):
    """Equal in everything but the configuration, which names another cache."""
    found, expected = checkpoints.read(path), checkpoints.read(expected)
    assert found.pop("config") != expected.pop("config")
    assert_equal(found, expected)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "training"])
def test_a_full_disk_stops_a_command_which_goes_on_with_space_back(scene):
    """Files may not grow beyond some bytes: writes fail half way, as on a full disk."""
    place = scene.fresh("full")
    line = check_sentence(begin(scene.name, place, lambda: limit_files(300)).wait())
    assert "File too large" in line
    assert leftovers(place) == []
    scene.check(place, finished=False)
    finish(scene.name, place)
    scene.check(place, finished=True)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# ---------------------------------------------------------------- other faults


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_workdir_gets_a_sentence(tmp_path, trained, name):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        if disk is None:
            pytest.skip("this process may not mount a file system")
        subprocess.run(["cp", "-r", f"{trained}/results/W", f"{trained}/cache", disk], check=True)
        before = tree(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        line = check_sentence(command(COMMANDS[name], tmp_path, [*SMALL, *on(disk)]))
        assert "cannot be written (Read-only file system)" in line
        assert tree(disk) == before


def test_a_read_only_cache_that_stands_is_enough(tmp_path, trained):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        if disk is None:
            pytest.skip("this process may not mount a file system")
        subprocess.run(["cp", "-r", f"{trained}/cache", disk], check=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        cache = f"--config.data.cache={disk}/cache"
        done = command(COMMANDS["training"], tmp_path, [*SMALL, cache])
        assert done.returncode == 0, done.stderr
        done = command(COMMANDS["training"], tmp_path, [*SMALL, f"{cache}/of/another"])
        assert "cannot be written" in check_sentence(done)


@pytest.mark.parametrize("name", COMMANDS)
def test_processes_given_the_same_work_agree(scene):
    """Three at once on the same divisions, batches or steps, and one of them killed."""
    place = scene.fresh("shared")
    running = [begin(scene.name, place) for _ in range(3)]
    time.sleep(0.4)
    running[1].process.kill()
    for one in (running[0].wait(), running[2].wait()):
        if one.returncode != 0:  # of training runs there is one at a time
            assert scene.name == "training"
            assert "Another process is training in results/W" in check_sentence(one)
    running[1].wait()
    finish(scene.name, place)
    scene.check(place, finished=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_clock_that_jumps_changes_nothing(scene):
    place = scene.fresh("jumping")

    def jump():
        jumps = itertools.cycle([0, 10**9, -(10**9), 3600, -86400])
        clock = time.time
        time.time = tqdm.std.time = lambda: clock() + next(jumps)

    done = begin(scene.name, place, jump).wait()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    scene.check(place, finished=True)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """But not what a living one is writing."""
    path = tmp_path / "a[1].npz"
    abandoned = tmp_path / f".{path.name}.0123.tmp"
    abandoned.write_bytes(b"half")
    with files.atomic_write(path) as first:
        (living,) = leftovers(tmp_path)
        first.write(b"one")
        with files.atomic_write(path) as second:
            second.write(b"two")
        assert living.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "training"])
def test_nothing_stays_beside_a_file_that_another_process_finished(scene):
    """Of two processes at one file the first ended it, the second was killed at its own write."""
    made = scene.expected.keys() - tree(scene.base).keys()
    place = scene.fresh("shared")
    finish(scene.name, place)
    for path in map(place.joinpath, made):
        (path.parent / f".{path.name}.0123.tmp").write_bytes(b"half")
    assert len(leftovers(place)) == len(made) > 1
    finish(scene.name, place)
    scene.check(place, finished=True)


def test_a_file_that_another_process_takes_for_abandoned_is_let_go(tmp_path, monkeypatch):
    """Locked by the other between its creation and the writer's own lock, and then removed."""
    others, lock = [], files.lock

    def late(file, **options):
        if not others:
            others.append(open(file.name, "rb"))  # noqa: SIM115 (it is the lock)
            assert lock(others[0])
        return lock(file, **options)

    monkeypatch.setattr(files, "lock", late)
    with files.atomic_write(tmp_path / "a.npz") as file:
        file.write(b"one")
        pathlib.Path(others[0].name).unlink()
        others[0].close()
    assert (tmp_path / "a.npz").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("abandoned", [0, 1])
def test_on_nfs_only_files_open_for_writing_are_locked(tmp_path, monkeypatch, abandoned):
    def flock(file, operation):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock)
    check_a_write(tmp_path, abandoned, left=0)


@pytest.mark.parametrize("abandoned", [0, 1])
def test_without_locks_files_are_written(tmp_path, monkeypatch, abandoned):
    """And nobody can tell what others have left."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    check_a_write(tmp_path, abandoned, left=abandoned)


def check_a_write(folder, abandoned, left):
    for number in range(abandoned):
        (folder / f".a.npz.{number}.tmp").write_bytes(b"half")
    with files.atomic_write(folder / "a.npz") as file:
        file.write(b"one")
    assert (folder / "a.npz").read_bytes() == b"one"
    assert len(leftovers(folder)) == left
    assert len(os.listdir(folder)) == 1 + left


@pytest.mark.slow
def test_divisions_drawn_by_killed_processes_are_those_of_a_quiet_one(tmp_path):
    """Four processes draw ten divisions in random order; two are killed and begun again."""
    quiet = base_of("sampling", tmp_path)
    disturbed = shutil.copytree(quiet, tmp_path / "disturbed")
    line = f"run_lib_sampling.py {EVALUATION} --bs 100 --num_samples 2000 --num_divisions 10"
    assert start(f"{line} --workdir W", quiet, SMALL).wait().returncode == 0
    rng = random.Random(0)
    waiting = rng.sample(range(10), 10)
    doomed, running = set(waiting[1:8:5]), {}
    while waiting or running:
        while waiting and len(running) < 4:
            division = waiting.pop(0)
            one = start(f"{line} --workdir W --division_idx {division}", disturbed, SMALL)
            running[division] = one, time.monotonic() + rng.uniform(0, 0.5)
        time.sleep(0.01)
        for division, (one, deadline) in list(running.items()):
            if division in doomed and time.monotonic() > deadline:
                one.process.kill()
                one.process.join()
                doomed.remove(division)
            if not one.process.is_alive():
                del running[division]
                done = one.wait()
                assert done.returncode in (0, -signal.SIGKILL), done.stderr
                if done.returncode:
                    waiting.append(division)
    expected, found = tree(quiet), tree(disturbed)
    assert found == expected
    assert leftovers(disturbed) == []
    assert sum("eval_sampling" in name and name.endswith(".npz") for name in found) == 20
