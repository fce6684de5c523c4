"""Runs the commands as typed, each in a forked process, with made-up images behind the data sets.

A fork has everything imported already, so that a test can afford many commands.
"""

import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import pathlib
import resource
import runpy
import sys
import threading
import traceback
import uuid

import matplotlib.figure  # noqa: F401 (imported here, the forks need not)
import numpy as np
import tiny
import torch
import torchvision  # noqa: F401
from tqdm import tqdm

import datasets
import run_lib_likelihood  # noqa: F401
import run_lib_sampling  # noqa: F401
from metrics import feature_classifier
from readers import common

ROOT = pathlib.Path(__file__).parent.parent
CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "SVHN": 10, "imagenet": 1000}
COUNTS = {"train": 6, "test": 5}
IMAGE_SIZE = 8

# tqdm's own lock is one that forks share: one that is killed while it holds it would stop the rest.
tqdm.set_lock(threading.RLock())
# The first use of forward mode loads much; the forks inherit it.
torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))
# A first backward pass on fake tensors would start threads, and forks of their process have none.
torch.ones(1, requires_grad=True).sin().backward()

# The published networks, made tiny.
TINY = [
    "--config.device=cpu",
    f"--config.data.image_size={IMAGE_SIZE}",
    "--config.model.nf=4",
    "--config.model.ch_mult=(1,1)",
    "--config.model.num_res_blocks=1",
    "--config.model.attn_resolutions=()",
    "--config.model.num_scales=3",
    # From zero, as published, two steps of training leave a constrained model's score where
    # Langevin's step size, which divides by its norm, overflows.
    "--config.model.init_scale=1",
]


def made_up(name):
    """A reader of small random images in place of the data set's own."""

    def blocks(split):
        rng = np.random.default_rng([len(name), len(split)])
        count = COUNTS[split]
        images = rng.integers(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
        yield common.Block(images, np.arange(count) % CLASSES[name])

    def reader(data, split):
        shape = (3, IMAGE_SIZE, IMAGE_SIZE)
        return common.Source(shape, CLASSES[name], blocks(split), [name], COUNTS[split])

    return reader


@dataclasses.dataclass
class Done:
    """What a command left: exit status, standard output and error."""

    returncode: int
    stdout: str
    stderr: str


def brief_features():
    """Train the classifier of features for three steps only: it need not be good."""
    feature_classifier.train_small_classifier = functools.partial(
        feature_classifier.train_small_classifier, steps=3
    )


def command(line, cwd, extra=()):
    """Run ``script.py --flag …`` in the directory `cwd`, with more arguments in `extra`."""
    return start(line, cwd, extra).wait(limit=300)


def works(line, cwd, extra=()):
    """The output of a command that must succeed."""
    done = command(line, cwd, extra)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def refused(line, cwd, extra, *named):
    """Run a command that must end with a sentence about all of `named`."""
    tiny.check_sentence(command(line, cwd, extra), *named)


def start(line, cwd, extra=(), prepare=None):
    """Start a command; `prepare` is called in its process before it begins."""
    script, *arguments = line.split()
    name = uuid.uuid4().hex
    files = [pathlib.Path(cwd) / f".{name}.{stream}" for stream in ("stdout", "stderr")]
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=([script, *arguments, *extra], cwd, files, prepare)
    )
    process.start()
    return Running(process, files)


@dataclasses.dataclass
class Running:
    """A command that was started; `process` is a real one of the system's."""

    process: multiprocessing.Process
    files: list

    def wait(self, limit=None):
        """Wait for the end of the command, which is killed after `limit` seconds: a `Done`."""
        self.process.join(limit)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        texts = [path.read_text() if path.exists() else "" for path in self.files]
        for path in self.files:
            path.unlink(missing_ok=True)
        return Done(self.process.exitcode, *texts)


def _child(arguments, cwd, files, prepare):
    status = 70
    # What it prints is kept in memory: no file limit that a test sets can meet its own output.
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            for name in CLASSES:
                datasets.DATASETS[name] = made_up(name)
            brief_features()
            os.chdir(cwd)
            if prepare is not None:
                prepare()
            sys.argv = arguments
            sys.path.insert(0, str(ROOT))
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
    _, largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    for path, text in zip(files, (out, err), strict=True):
        path.write_text(text.getvalue())
    os._exit(status)
