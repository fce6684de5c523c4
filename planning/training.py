"""The dry run of main.py: what training would do."""

import os
from collections.abc import Callable
from typing import Any

import ml_collections
import torch

import run_lib
from configs import ranges
from models import memory
from planning.costs import Files, count_flops, count_parameters, print_plan, readable_flops
from storage import checkpoints
from storage.workdir import Workdir
from training import resuming
from training.score import ScoreTraining
from utils import get_device, is_first, rank_and_size


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    restore: str | os.PathLike | None = None,
    make_job: Callable = ScoreTraining,
) -> None:
    """Print what `run_lib.train` would do with the same arguments; nothing is written.

    The data are neither read nor fetched: only what they are to be is known.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    ranges.check(config)
    training, place = config.training, Workdir(workdir)
    job = make_job(config, get_device(config.device))
    run_lib.require_divisible(job.model, training)
    step, origin = start(job, config, place, restore)
    _, processes = rank_and_size()
    share = training.batch_size // processes
    images = min(training.microbatch or share, share)
    kept = memory.count_step(job, images, processes)
    flops = training.batch_size * flops_of_step(job, images) / images
    if not is_first():
        return
    facts = {
        "data": f"{config.data.dataset}, {job.domain.noun} of shape {job.domain.shape}",
        "parameters": f"{count_parameters(job.model):,}",
        "steps": f"{step} to {training.n_iters}, batch {training.batch_size}; {origin}",
        "a step": readable_flops(flops),
        "all steps": readable_flops(flops * max(0, training.n_iters - step)),
        "memory": f"{memory.readable(kept.total)} for each process on {job.device}: "
        f"{memory.readable(kept.fixed)} for weights, gradients, averages and moments, "
        f"{memory.readable(kept.per_image)} for each of {images} {job.domain.noun}",
    }
    print_plan(config, facts, files_of(config, job, place, step))


def start(
    job: Any, config: ml_collections.ConfigDict, place: Workdir, restore: str | os.PathLike | None
) -> tuple[int, str]:
    """The step that training would start at, and the words that say why.

    Raises:
        UserError: a file does not fit, or the workdir's state is that of another run.
    """
    path, content, _ = resuming.newest_state(place)
    if path is not None:
        resuming.require_same_run(content, config, path)
        absent = 0
    elif restore is not None:
        path, content = restore, checkpoints.read(restore)
        absent = config.training.get("init_step", 0)
    else:
        return 0, "from the beginning"
    checkpoints.load_model(job.model, content, path)
    return checkpoints.read_count(content, "step", path, absent), f"from {path}"


def flops_of_step(job: Any, images: int) -> int:
    """FLOPs of the gradient of a batch of `images`."""
    parameters = [p for p in job.model.parameters() if p.requires_grad]

    def gradient():
        loss, _ = memory.loss_of(job, images)
        torch.autograd.grad(loss, parameters, allow_unused=True)

    job.model.train()
    with memory.kept_buffers(job.model):
        return count_flops(gradient)


def files_of(config: ml_collections.ConfigDict, job: Any, place: Workdir, step: int) -> list[Files]:
    """The `Files` of a training run from `step` on."""
    training = config.training
    size = sum(p.numel() * p.element_size() for p in job.model.parameters())
    checkpoint = 4 * size  # weights, averages and Adam's two moments
    due = training.n_iters // training.snapshot_freq - step // training.snapshot_freq
    # That of the last step takes the name of the one before, where there is one.
    last = training.n_iters % training.snapshot_freq > 0
    files = [
        Files(place.checkpoint("*"), max(1, due), checkpoint),
        Files(place.checkpoint()),
        Files(place.resume_point, 1, checkpoint),
        Files(place.tensorboard / "*"),
        Files(place.log_file),
    ]
    if training.snapshot_sampling:
        files.append(Files(place.snapshot_samples("*") / "sample.*", 2 * (due + last)))
    return files
