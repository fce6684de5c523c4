"""Two hundred kills at random moments, and every byte as an undisturbed run leaves it.

    python soak/kills.py [--kills 200] [--seed 0]

Each command is killed with SIGKILL until one of its runs comes to its end, and begun anew, until it
has had its share of the kills. After each kill every file under a final name is whole; after each
end all of them are those of the undisturbed run. Prints how often what was done.
"""

import argparse
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

import faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=200, help="over all commands together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.monotonic()
    share = -(-arguments.kills // len(faults.COMMANDS))
    scenes = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in faults.COMMANDS:
            rng = random.Random(f"{arguments.seed} {name}")
            scene = faults.Scene(name, faults.base_of(name, folder), folder, rng)
            while scene.kills < share:
                scene.kill_until_finished()
            report(name, [scene], begun)
            scenes.append(scene)
    report("all commands", scenes, begun)


def report(name, scenes, begun):
    """A difference ends the script with an error, so that what is printed had none."""
    counts = [sum(getattr(s, field) for s in scenes) for field in ("kills", "restarts", "files")]
    print(
        "{}: {} kills, {} starts, {} files compared, 0 differences, {:.0f} s".format(
            name, *counts, time.monotonic() - begun
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
