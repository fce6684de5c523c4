"""50,000 samples in 50 divisions from four processes, a fifth of them killed: no byte differs.

    python soak/samples.py [--samples 50000] [--divisions 50]

Four processes draw the divisions in random order. A fifth as many as there are divisions are killed
at random moments and begun again. Every file must have the bytes that one quiet process writes, and
the samples that are encoded and compared with real images must give the same metrics.
"""

import argparse
import json
import math
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

import faults
from commands import TINY, start

from storage.files import load_npz

PROCESSES = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=50000)
    parser.add_argument("--divisions", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak(pathlib.Path(folder), arguments.samples, arguments.divisions)


def soak(folder, samples, divisions, log=print):
    """Draw, disturb, compare, encode and measure in `folder`; a difference is an error.

    Returns:
        A dict of the numbers of kills and files, and of the metrics.
    """
    rng = random.Random(0)
    quiet = faults.base_of("sampling", folder)
    disturbed = shutil.copytree(quiet, folder / "disturbed")
    line = (
        f"run_lib_sampling.py {faults.EVALUATION} --bs 500 --num_samples {samples} "
        f"--num_divisions {divisions} --workdir W"
    )
    begun = time.monotonic()
    run(line, quiet)
    seconds = time.monotonic() - begun
    log(f"one quiet process: {samples} samples in {divisions} divisions, {seconds:.0f} s")

    order = rng.sample(range(divisions), divisions)
    wanted = -(-divisions // 5)
    kills = draw_divisions(line, disturbed, order, rng, wanted, seconds / divisions)
    log(f"four processes: {kills} killed and begun again")

    expected, found = faults.tree(quiet), faults.tree(disturbed)
    assert found.keys() == expected.keys()
    differences = [name for name in found if found[name] != expected[name]]
    assert not differences, differences
    assert not faults.leftovers(disturbed)
    arrays = [
        load_npz(path, "samples")["samples"]
        for path in (disturbed / "results/W/eval_sampling").rglob("*.npz")
    ]
    count = sum(map(len, arrays))
    assert count == samples, count
    log(f"{count} samples in {len(arrays)} files of samples; {len(found)} files, 0 differences")

    metrics = [measure(place, samples, divisions) for place in (quiet, disturbed)]
    assert metrics[0] == metrics[1], metrics
    values = {name: metrics[0]["fid_is"][name] for name in metrics[0]["fid_is"]}
    values.pop("settings")
    log(f"equal metrics: {values}")
    return {"kills": kills, "samples": count, "files": len(found), "metrics": metrics[0]}


def draw_divisions(line, place, order, rng, wanted, seconds):
    """Draw the divisions in four processes at a time; some are killed and begun again.

    Args:
        order: the numbers of the divisions.
        wanted: how many processes to kill, each after a random part of `seconds`.

    Returns:
        How many were killed.
    """
    waiting, running, kills = list(order), {}, 0
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            division = waiting.pop(0)
            marked = sum(deadline < math.inf for _, deadline in running.values())
            unlucky = kills + marked < wanted and rng.random() < 0.4
            pause = rng.uniform(0, seconds) if unlucky else math.inf
            one = start(f"{line} --division_idx {division}", place, options(place))
            running[division] = one, time.monotonic() + pause
        time.sleep(0.01)
        for division, (one, deadline) in list(running.items()):
            if time.monotonic() > deadline:
                one.process.kill()
                one.process.join()
            if one.process.is_alive():
                continue
            del running[division]
            done = one.wait()
            if done.returncode == -signal.SIGKILL:
                kills += 1
                waiting.append(division)
            else:
                assert done.returncode == 0, done.stderr
    return kills


def measure(place, samples, divisions):
    """Encode the samples and the real images, compare them, and read the metrics."""
    run(
        f"run_lib_evaluation_fidis.py {faults.EVALUATION} --bs 500 --workdir W "
        f"--config.eval.num_samples={samples} --config.eval.num_divisions={divisions} "
        "--config.eval.features=classifier --encode --encode_dataset --fidis",
        place,
    )
    return json.loads((place / "results/W/metrics.json").read_text())


def options(place):
    return [*TINY, f"--config.data.cache={place}/cache"]


def run(line, place):
    done = start(line, place, options(place), faults.brief_features).wait()
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
