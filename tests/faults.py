"""Faults put upon real commands: kills at any moment, full disks, and what must hold after them.

A command runs in a process of its own, which is killed with SIGKILL just before its n-th change of
a file: before a rename, between the last byte and the rename, and so on.
"""

import dataclasses
import itertools
import os
import pathlib
import random
import shutil
import signal

from commands import TINY, start

import run_lib_evaluation  # noqa: F401 (imported here, the forks need not)
from metrics import encoding, extractors  # noqa: F401
from storage import checkpoints

ROOT = pathlib.Path(__file__).parent.parent
TRAINING = f"--config {ROOT}/configs/qc_ncsn/training/cifar10_ncsnpp_deep_continuous.py"
EVALUATION = f"--config {ROOT}/configs/qc_ncsn/evaluation/eval_cifar10_config.py"
SMALL = [*TINY, "--config.data.cache=cache", "--config.sampling.batch_size=4"]
FEW_STEPS = (
    "--config.training.n_iters=6 --config.training.snapshot_freq=2 --config.training.eval_freq=3 "
    "--config.training.snapshot_freq_for_preemption=1 --config.training.log_freq=1"
)
LOOSE = "--atol 0.5 --rtol 0.5"
COMMANDS = {
    "training": f"main.py {TRAINING} --balancing_fac 0 --bs 2 --workdir W {FEW_STEPS}",
    "sampling": f"run_lib_sampling.py {EVALUATION} --bs 3 --num_samples 20 --num_divisions 3 "
    "--workdir W",
    "ODE sampling": f"run_lib_sampling.py {EVALUATION} --ode --bs 5 --num_samples 20 "
    "--num_divisions 2 --workdir W --config.sampling.atol=0.5 --config.sampling.rtol=0.5",
    "NLL": f"run_lib_evaluation_nll.py {EVALUATION} --bs 1 {LOOSE} --workdir W --calculate",
    "asymmetry": f"run_lib_evaluation_asym.py {EVALUATION} --bs 2 --nl 2 --workdir W --calculate",
    "encoding": f"run_lib_evaluation_fidis.py {EVALUATION} --bs 7 --workdir W --encode "
    "--encode_dataset --config.eval.num_samples=20 --config.eval.num_divisions=3 "
    "--config.eval.features=classifier",
}
# What must have come to its end before a command.
BEFORE = {"training": [], "encoding": ["training", "sampling"]}


def begin(name, place, prepare=None):
    """Start the command `name` in the directory `place`."""
    return start(COMMANDS[name], place, SMALL, prepare)


def finish(name, place):
    """Run the command `name` undisturbed."""
    done = begin(name, place).wait()
    assert done.returncode == 0, done.stderr


def base_of(name, folder):
    """A directory in `folder` in which all that comes before the command `name` is done."""
    before = BEFORE.get(name, ["training"])
    place = folder / ("after " + " and ".join(before) if before else "nothing")
    if not place.exists():
        place.mkdir()
        for other in before:
            finish(other, place)
    return place


# Files that say when something was done, not what; and files that belong to nobody but a lock.
NOT_COMPARED = ("stdout.txt", "tensorboard")


def tree(root):
    """{relative path: bytes} of every file under a final name."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not path.name.startswith(".")
        and not any(part in NOT_COMPARED for part in path.parts)
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


def leftovers(root):
    """Temporary files that nobody will remove."""
    return [path for path in root.rglob(".*") if path.name.endswith((".tmp", ".building"))]


def kill_before_change(number, root):
    """A `prepare` after which the process kills itself before its n-th change under `root`."""
    changes = itertools.count(1)

    def change(path):
        inside = isinstance(path, int) or str(path).startswith((str(root), "results", "cache"))
        if inside and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        ):
            change(os.fspath(arguments[0]))

    def prepare():
        import sys

        sync = os.fsync

        def fsync(descriptor):
            change(descriptor)
            sync(descriptor)

        os.fsync = fsync
        sys.addaudithook(hook)

    return prepare


@dataclasses.dataclass
class Scene:
    """A command in a directory, beside what an undisturbed run of it leaves.

    Attributes:
        base: a directory with what the command begins from.
        kills: how many processes were killed.
    """

    name: str
    base: pathlib.Path
    folder: pathlib.Path
    rng: random.Random
    kills: int = 0

    def __post_init__(self):
        reference = self.fresh("reference")
        finish(self.name, reference)
        self.expected = tree(reference)

    def fresh(self, name):
        """A copy of the base."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.base, path)
        return path

    def check(self, place, finished):
        """Every file under a final name is whole: what the undisturbed run has, or a checkpoint."""
        found = tree(place)
        for name, content in found.items():
            if content == self.expected.get(name):
                continue
            moving = name.endswith("checkpoint.pth") and not finished
            assert moving, f"{name} differs"
            checkpoints.read(place / name)
        if finished:
            assert found.keys() == self.expected.keys()

    def kill_until_finished(self):
        """Start, kill and start again, until a run comes to its end; then compare everything."""
        place = self.fresh("disturbed")
        while True:
            moment = self.rng.randint(1, 60)
            done = begin(self.name, place, kill_before_change(moment, place)).wait()
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            self.kills += 1
            self.check(place, finished=False)
        self.check(place, finished=True)
