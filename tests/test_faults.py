"""Kills and full disks, put upon real commands."""

import itertools
import os
import random
import resource
import signal

import pytest
import tiny
from faults import COMMANDS, Scene, begin, finish, kill_before_change

from storage import files


@pytest.fixture
def scene(tmp_path, name):
    base = tmp_path / "base"
    base.mkdir()
    for before in itertools.takewhile(lambda other: other != name, COMMANDS):
        finish(before, base)
    return Scene(name, base, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_a_command_ends_with_the_same_bytes(scene):
    rng, kills = random.Random(scene.name), 0
    for attempt in itertools.count():
        place = scene.fresh(f"disturbed {attempt}")
        while True:
            moment = rng.randint(1, 60)
            done = begin(scene.name, place, kill_before_change(moment, place)).wait()
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            kills += 1
            scene.check(place, finished=False)
        scene.check(place, finished=True)
        if kills >= 8:
            break


@pytest.mark.parametrize("name", [pytest.param("training", marks=pytest.mark.slow), "sampling"])
def test_a_full_disk_stops_a_command_which_goes_on_with_space_back(scene):
    """Files may not grow beyond some bytes: writes fail half way, as on a full disk."""
    place = scene.fresh("full")
    done = begin(scene.name, place, lambda: limit_files(300)).wait()
    tiny.check_sentence(done, "File too large")
    assert "Traceback" not in done.stdout
    assert not [path for path in place.rglob(".*") if path.suffix in (".tmp", ".building")]
    scene.check(place, finished=False)
    finish(scene.name, place)
    scene.check(place, finished=True)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


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
