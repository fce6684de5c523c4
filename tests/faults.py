"""Kills of real commands at any moment, full disks, and what must hold after them.

A command runs in a process of its own, which is killed with SIGKILL just before its n-th change of
a file: before a rename, between the last byte and the rename, and so on.
"""

import dataclasses
import itertools
import os
import pathlib
import shutil
import signal
import sys

from commands import ROOT, TINY, start

import run_lib_evaluation  # noqa: F401 (imported here, the forks need not)
from metrics import encoding, extractors  # noqa: F401
from storage import checkpoints

TRAINING = f"--config {ROOT}/configs/qc_ncsn/training/cifar10_ncsnpp_deep_continuous.py"
EVALUATION = f"--config {ROOT}/configs/qc_ncsn/evaluation/eval_cifar10_config.py"
SMALL = [*TINY, "--config.data.cache=cache", "--config.sampling.batch_size=4"]
FEW_STEPS = (
    "--config.training.n_iters=6 --config.training.snapshot_freq=2 --config.training.eval_freq=3 "
    "--config.training.snapshot_freq_for_preemption=1 --config.training.log_freq=1"
)
# In an order in which each finds the files that it needs.
COMMANDS = {
    "training": f"main.py {TRAINING} --balancing_fac 0 --bs 2 --workdir W {FEW_STEPS}",
    "sampling": f"run_lib_sampling.py {EVALUATION} --bs 3 --num_samples 20 --num_divisions 3 "
    "--workdir W",
    "asymmetry": f"run_lib_evaluation_asym.py {EVALUATION} --bs 2 --nl 2 --workdir W --calculate",
    "encoding": f"run_lib_evaluation_fidis.py {EVALUATION} --bs 7 --workdir W --encode "
    "--encode_dataset --config.eval.num_samples=20 --config.eval.num_divisions=3 "
    "--config.eval.features=classifier",
}
# Files that say when something was done, not what.
NOT_COMPARED = ("stdout.txt", "tensorboard")


def begin(name, place, prepare=None):
    """Start the command `name` in the directory `place`."""
    return start(COMMANDS[name], place, SMALL, prepare)


def finish(name, place):
    """Run the command `name` undisturbed."""
    done = begin(name, place).wait()
    assert done.returncode == 0, done.stderr


def tree(root):
    """{relative path: bytes} of every file under a final name."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    parts = {path: path.relative_to(root).parts for path in files}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in files
        if not any(part.startswith(".") or part in NOT_COMPARED for part in parts[path])
    }


def kill_before_change(number, root):
    """A `prepare` after which the process kills itself before its n-th change under `root`."""
    changes, sync = itertools.count(1), os.fsync

    def change(path):
        inside = isinstance(path, int) or str(path).startswith((str(root), "results", "cache"))
        if inside and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        ):
            change(os.fspath(arguments[0]))

    def fsync(descriptor):
        change(descriptor)
        sync(descriptor)

    def prepare():
        os.fsync = fsync
        sys.addaudithook(hook)

    return prepare


@dataclasses.dataclass
class Scene:
    """The command `name` in copies of the directory `base`, and the files that it leaves there."""

    name: str
    base: pathlib.Path
    folder: pathlib.Path

    def __post_init__(self):
        reference = self.fresh("reference")
        finish(self.name, reference)
        self.expected = tree(reference)

    def fresh(self, name):
        """A copy of the base."""
        shutil.copytree(self.base, self.folder / name)
        return self.folder / name

    def check(self, place, finished):
        """Every file under a final name is whole: what the undisturbed run has, or a checkpoint."""
        found = tree(place)
        for name in [name for name in found if found[name] != self.expected.get(name)]:
            assert not finished, f"{name} differs"
            assert name.endswith("checkpoint.pth"), f"{name} differs"
            checkpoints.read(place / name)
        if finished:
            assert found.keys() == self.expected.keys()
