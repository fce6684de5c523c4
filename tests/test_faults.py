"""Kills, full disks, read-only directories and races, put upon real commands."""

import errno
import fcntl
import os
import random
import resource
import subprocess
import time

import pytest
from commands import command
from faults import (
    COMMANDS,
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
from utils import UserError

# One command of all; the others are slow.
EACH = ["sampling"]
EACH += [pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS if name not in EACH]


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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", [name for name in EACH if "training" not in str(name)])
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


@pytest.mark.parametrize("name", EACH)
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


@pytest.mark.slow
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


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path):
    """But not what a living one is writing."""
    path = tmp_path / "a[1].npz"
    abandoned, recent = (tmp_path / f".{path.name}.{n}.tmp" for n in (1, 2))
    for file in (abandoned, recent):
        file.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    with files.atomic_write(path) as file:
        file.write(b"one")
    assert path.read_bytes() == b"one"
    assert sorted(os.listdir(tmp_path)) == sorted([recent.name, path.name])


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_good_enough(tmp_path, monkeypatch, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.exclusive(tmp_path / "lock"), files.exclusive(tmp_path / "lock", "taken"):
        pass


def test_a_lock_is_held_by_one(tmp_path):
    with (
        files.exclusive(tmp_path / "lock"),
        pytest.raises(UserError, match="taken"),
        files.exclusive(tmp_path / "lock", "taken"),
    ):
        pass
    with files.exclusive(tmp_path / "lock", "taken"):
        pass
