"""Kills, full disks and races, put upon real commands."""

import os
import random
import resource
import time

import pytest
from faults import (
    COMMANDS,
    Scene,
    base_of,
    begin,
    finish,
    leftovers,
)

from storage import files

# One command of all; the others are slow.
EACH = ["sampling"]
EACH += [pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS if name not in EACH]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def scene(tmp_path, bases, name):
    return Scene(name, base_of(name, bases), tmp_path, random.Random(name))


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


@pytest.mark.parametrize("name", EACH)
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
            assert "results/W" in check_sentence(one)
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
