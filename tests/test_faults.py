"""Kills, full disks, read-only directories, races and jumping clocks, put upon real commands."""

import itertools
import os
import random
import resource
import subprocess
import time

import pytest
import tqdm.std
from commands import command, start
from faults import COMMANDS, SMALL, Scene, leftovers, mounted, tree
from test_checkpoints import assert_equal

import checkpoints
import utils


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory in which the training command has come to its end."""
    folder = tmp_path_factory.mktemp("trained")
    done = command(COMMANDS["training"], folder, SMALL)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_a_command_ends_with_the_same_bytes(tmp_path, trained, name):
    """A sample of what `make soak` does two hundred times over."""
    base = trained
    if name == "training":
        base = tmp_path / "empty"
        base.mkdir()
    scene = Scene(name, base, tmp_path, random.Random(name))
    while scene.kills < 3:
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
def test_a_full_disk_stops_a_command_which_goes_on_with_space_back(tmp_path, trained, name):
    """Files may not grow beyond some bytes: writes fail half way, as on a full disk."""
    scene = Scene(name, trained, tmp_path, random.Random(0))
    place = scene.fresh("full")
    line = check_sentence(start(scene.line, place, SMALL, lambda: limit_files(300)).wait())
    assert "File too large" in line
    assert leftovers(place) == []
    scene.check(place, finished=False)
    assert command(scene.line, place, SMALL).returncode == 0
    scene.check(place, finished=True)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


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
def test_processes_given_the_same_work_agree(tmp_path, trained, name):
    """Three at once on the same divisions, batches or cache, and one of them killed."""
    base = trained
    if name == "training":  # each in a workdir of its own, with a cache to build between them
        base = tmp_path / "empty"
        base.mkdir()
    scene = Scene(name, base, tmp_path, random.Random(1))
    place = scene.fresh("shared")
    workdirs = [f"--workdir=W{i}" if name == "training" else "--workdir=W" for i in range(3)]
    running = [start(scene.line, place, [*SMALL, workdir]) for workdir in workdirs]
    time.sleep(0.4)
    running[1].process.kill()
    done = [one.wait() for one in running]
    assert (done[0].returncode, done[2].returncode) == (0, 0), done
    if name == "training":
        for number in (0, 2):
            (place / f"results/W{number}").rename(place / "results/W")
            subprocess.run(["rm", "-rf", str(place / "results/W1")], check=True)
            found = {k: v for k, v in tree(place).items() if not k.startswith("results/W2")}
            assert found == scene.expected
            subprocess.run(["rm", "-r", str(place / "results/W")], check=True)
    else:
        scene.check(place, finished=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_clock_that_jumps_changes_nothing(tmp_path, trained, name):
    base = trained
    if name == "training":
        base = tmp_path / "empty"
        base.mkdir()
    scene = Scene(name, base, tmp_path, random.Random(2))
    place = scene.fresh("jumping")

    def jump():
        jumps = itertools.cycle([0, 10**9, -(10**9), 3600, -86400])
        clock = time.time
        time.time = tqdm.std.time = lambda: clock() + next(jumps)

    done = start(scene.line, place, SMALL, jump).wait()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    scene.check(place, finished=True)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """But not what a living one is writing."""
    path = tmp_path / "a[1].npz"
    abandoned = tmp_path / f".{path.name}.0123.tmp"
    abandoned.write_bytes(b"half")
    with utils.atomic_write(path) as first:
        (living,) = leftovers(tmp_path)
        first.write(b"one")
        with utils.atomic_write(path) as second:
            second.write(b"two")
        assert living.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == [path.name]
