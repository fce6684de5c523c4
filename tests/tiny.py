"""The smallest configuration that trains and samples: digits, a few thousand weights."""

import os
import pathlib
import subprocess
import sys

import torch

from configs.demo import digits
from storage.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / "configs/demo/digits.py"


def changes(cache):
    """Fields that make the demo's configuration tiny; its data cache is `cache`."""
    return {
        "data.cache": str(cache),
        "model.nf": 8,
        "model.ch_mult": (1,),
        "model.num_res_blocks": 1,
        "model.attn_resolutions": (),
        "model.num_scales": 3,
        "model.dropout": 0.1,  # its masks must come back after a restart too
        "optim.warmup": 2,
        "training.batch_size": 16,
        "training.n_iters": 8,
        "training.log_freq": 2,
        "training.eval_freq": 4,
        "training.snapshot_freq": 4,
        "training.snapshot_freq_for_preemption": 3,
        "training.snapshot_sampling": False,
        "sampling.batch_size": 4,
        "eval.batch_size": 10,
        "eval.num_samples": 30,
        "eval.num_divisions": 3,
    }


def config(cache, **more):
    """The tiny configuration; `more` is fields with "__" for the dot."""
    result = digits.get_config()
    fields = dict(changes(cache), **{k.replace("__", "."): v for k, v in more.items()})
    result.update_from_flattened_dict(fields)
    return result


def arguments(cache, path=CONFIG, **more):
    """The same as command-line arguments, or those of another configuration file."""
    fields = dict(changes(cache), **{k.replace("__", "."): v for k, v in more.items()})
    return [f"--config={path}", *(f"--config.{name}={value}" for name, value in fields.items())]


def check_files_of_a_run(root):
    """Those of a training run of `changes` that has drawn samples, and no other."""
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("tensorboard/")}
    assert len(events) == 1
    assert names - events == {
        "checkpoints/checkpoint_1.pth",
        "checkpoints/checkpoint_2.pth",
        "checkpoints/checkpoint.pth",
        "checkpoints-meta/checkpoint.pth",
        "samples/iter_4/sample.png",
        "samples/iter_4/sample.np",
        "samples/iter_8/sample.png",
        "samples/iter_8/sample.np",
        ".training",
        "stdout.txt",
    }


def newest(workdir):
    """The newest checkpoint of a run."""
    return torch.load(Workdir(str(workdir)).checkpoint(), weights_only=True)


def run(script, *args, cwd, **options):
    """Run one of the repository's scripts in the directory `cwd`, one thread."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", **options.pop("env", {}))
    return subprocess.run(
        [sys.executable, str(ROOT / script), *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def check_sentence(done, *said):
    """The process ended with status 1 and one sentence, no traceback."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    for part in said:
        assert part in done.stderr, done.stderr
