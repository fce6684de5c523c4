"""Training: one loop, top to bottom, for every `training.job.Job`, such as `ScoreTraining`."""

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Collection

import ml_collections
import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import datasets
import distributed
import losses
from storage import checkpoints
from storage.checkpoints import TrainState
from storage.ema import EMA
from storage.files import atomic_write, save_picture
from storage.scalars import ScalarWriter
from storage.workdir import Workdir
from training import resuming
from training.job import Job, MakeJob
from training.safeguards import Stopped, StopRequest, require_finite
from training.score import ScoreTraining
from training.throughput import Throughput, trace
from utils import (
    UserError,
    flatten,
    get_device,
    is_first,
    log,
    log_to,
    rank_and_size,
    seed_default_generators,
)


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    restore: str | os.PathLike | None = None,
    make_job: MakeJob = ScoreTraining,
    typed: Collection[str] = (),
) -> Job:
    """Train for ``config.training.n_iters`` updates, or continue the run in `workdir`.

    The processes of torchrun train together, see `distributed`.

    Args:
        workdir: name of the run, see `Workdir`.
        restore: checkpoint to start from, unless the workdir has a resume point.
        make_job: function of (config, device) to the job, such as `ScoreTraining`.
        typed: names of fields set on the command line; they are refused if a checkpoint
            contradicts them.

    Returns:
        The job, whose model has the weights of the last step.

    Raises:
        UserError: a file is missing, or does not fit the configuration.
    """
    place = Workdir(workdir)
    # The lock is taken before the state is read, so that no other run writes a newer one.
    with place.sole_trainer() if is_first() else contextlib.nullcontext():
        return _train(config, place, restore, make_job, typed)


def _train(config, place, restore, make_job, typed):
    # Check everything that can be checked before the first file is written.
    job, state, start, origin = prepare(config, place, restore, make_job, typed)
    config, training, device = job.config, job.config.training, job.device
    train_split, test_split = job.splits()
    if start.path is not None:
        datasets.require_same_data(train_split.identity, state.data, start.path)
    state.data = train_split.identity

    # Open the workdir.
    place.create()
    log_to(place.log_file)
    parameters = sum(p.numel() for p in job.model.parameters())
    log.info(
        f"Training on {len(train_split)} {job.domain.noun} of {config.data.dataset}: "
        f"{parameters:,} parameters, {device}, batch {training.batch_size}, to step "
        f"{training.n_iters}."
    )
    for sentence in origin:
        log.info("%s", sentence)
    if is_first() and start.continues and start.path != place.resume_point:
        publish(start.path, place)  # after a kill its links may be missing
    if state.step >= training.n_iters and picture_files(state, training, place) is None:
        log.info("Step %d is not before the last, %d: nothing to do.", state.step, training.n_iters)
        return job
    batches = datasets.TrainBatches(
        train_split, training.batch_size, config.seed, position=state.position
    )
    if test_split is None:
        log.info("%s has no test split: nothing is validated.", config.data.dataset)

    # Train.
    values = {}  # of the last step
    with contextlib.ExitStack() as stack:
        if is_first():
            writer = ScalarWriter(place.tensorboard, state.step + 1)
            stack.callback(writer.close)
        world = stack.enter_context(
            distributed.join(job.model, job.objective, device, agreed(state, config))
        )
        stop = stack.enter_context(StopRequest())
        stack.enter_context(logging_redirect_tqdm([log]))
        bar = stack.enter_context(progress_bar(state, training, job.domain.unit))
        profiler = stack.enter_context(
            trace(training.profile_steps if is_first() else None, place.tensorboard)
        )
        throughput = Throughput(job, state.step)
        saved = state.step
        with contextlib.suppress(Stopped):
            draw_pictures(state, job, place, stop)  # after a kill they may be missing
        while True:
            stopped_by = world.largest(stop.signal)
            if stopped_by:
                if saved != state.step:
                    save(state, config, place, values)
                log.info(
                    "Stopped by %s after step %d; the same command continues from there.",
                    signal.Signals(stopped_by).name,
                    state.step,
                )
                world.largest(0)  # torchrun ends all processes when one of them exits
                sys.exit(128 + stopped_by)
            if state.step >= training.n_iters:
                break

            values = training_step(state, job, batches, world)
            bar.update(training.batch_size)
            if profiler is not None:
                profiler.step()
            if state.step % training.log_freq == 0:
                require_finite(values, state.step)
                numbers = {name: float(value) for name, value in values.items()}
                bar.set_postfix(step=state.step, loss=f"{numbers['loss']:.4g}")
                numbers |= throughput.report(state.step)
                if is_first():
                    write_scalars(writer, "train", numbers, state.step)
            # Save before validation and sampling, which take long.
            due = state.step % training.snapshot_freq_for_preemption == 0
            if due or is_snapshot(state, training):
                with throughput.paused():
                    save(state, config, place, values)
                saved = state.step
            with (
                throughput.paused(),
                contextlib.suppress(Stopped),
            ):  # the next iteration handles the signal
                if is_first() and test_split and state.step % training.eval_freq == 0:
                    validate(state, job, test_split, writer, stop)
                draw_pictures(state, job, place, stop)
    log.info("Trained to step %d; checkpoints are in %s.", state.step, place.checkpoints)
    return job


def prepare(
    config: ml_collections.ConfigDict,
    place: Workdir,
    restore: str | os.PathLike | None,
    make_job: MakeJob,
    typed: Collection[str],
) -> tuple[Job, TrainState, resuming.Start, list[str]]:
    """The job, its state, its start, and sentences about it for the log.

    Writes nothing. Arguments and errors are those of `train`.
    """
    device = get_device(config.device)
    start = resuming.find(place, restore, config.model.get("pretrained"))
    config = start.adopt(config, typed)
    seed_default_generators("weights", config.seed)
    job = make_job(config, device)
    config = job.config
    require_divisible(job.model, config.training)
    parameters = list(job.model.parameters())
    state = checkpoints.TrainState(
        model=job.model,
        ema=EMA(parameters, job.ema_rate),
        optimizer=losses.make_optimizer(parameters, config.optim),
    )
    sentences = start.load(state, config)
    start.require_room(state.step, config.training, place)
    return job, state, start, sentences


def require_divisible(model: torch.nn.Module, training: ml_collections.ConfigDict) -> None:
    """Check that the batch can be split into processes and microbatches.

    Raises:
        UserError: the number of processes does not divide the batch, or a microbatch would split
            the batch of a batch norm.
    """
    _, size = rank_and_size()
    if training.batch_size % size:
        raise UserError(
            f"config.training.batch_size is {training.batch_size}; {size} processes need a "
            f"multiple of {size}."
        )
    share, microbatch = training.batch_size // size, training.microbatch
    norms = (m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm))
    if microbatch is not None and microbatch < share and any(norms):
        raise UserError(
            f"config.training.microbatch is {microbatch}, but this network has batch norms, which "
            "need the whole batch at once; leave it out."
        )


def agreed(state: TrainState, config: ml_collections.ConfigDict) -> dict[str, object]:
    """The step, the position and the fields that must be equal in all processes of a run."""
    fields = flatten({"config": config.to_dict()})
    for name in ("device", *resuming.PLACES):
        fields.pop(f"config.{name}", None)
    return {"step": state.step, "position": state.position, **fields}


def training_step(
    state: TrainState, job: Job, batches: datasets.TrainBatches, world: distributed.World
) -> dict[str, torch.Tensor]:
    """One update; returns the detached values of the objective and the gradient norm."""
    # The draws of a step are a function of (seed, step), so a continued run repeats those of an
    # uninterrupted one.
    seed_default_generators("training step", job.config.seed, state.step)
    values = gradients(state, job, batches, world)
    norm = losses.optimize(state.optimizer, state.ema.parameters, state.step, job.config.optim)
    state.ema.update()
    state.step += 1
    state.position = batches.position
    return dict(world.means(values), grad_norm=norm)


def gradients(
    state: TrainState, job: Job, batches: datasets.TrainBatches, world: distributed.World
) -> dict[str, torch.Tensor]:
    """Set the parameters' gradients for the next batch; returns the objective's values."""
    images, labels = (datasets.upload(part, job.device) for part in next(batches))
    x = job.domain.to_model(images, train=True)
    draws = job.objective.draw(x)
    part = losses.rows_of(x, labels, draws, world.rows(len(x)))
    if world.size > 1:
        # Dropout masks, unlike the draws above, depend on the number of processes.
        seed_default_generators("dropout", job.config.seed, state.step, world.rank)
    job.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    return accumulate_gradients(world.objective, *part, job.config.training.microbatch)


def accumulate_gradients(
    objective: distributed.Objective,
    x: torch.Tensor,
    labels: torch.Tensor,
    draws: dict[str, torch.Tensor],
    microbatch: int | None,
) -> dict[str, torch.Tensor]:
    """Add the gradient of a batch's mean loss, `microbatch` images at a time; None: all at once.

    Returns:
        The objective's values, means over the batch.
    """
    parts = list(losses.parts_of(x, labels, draws, microbatch or len(x)))
    means = {}
    for number, (share, part) in enumerate(parts, start=1):
        last = number == len(parts)
        with contextlib.nullcontext() if last else distributed.accumulating(objective):
            loss, values = objective(*part)
            (share * loss).backward()
        for name, value in values.items():
            means[name] = means.get(name, 0) + share * value
    return means


def validate(
    state: TrainState,
    job: Job,
    split: datasets.Split,
    writer: ScalarWriter,
    stop: StopRequest,
) -> None:
    """Write the job's validation values, with EMA weights, to the log and TensorBoard.

    The images and random draws are the same at every step.

    Raises:
        Stopped: a signal came; nothing is written.
    """
    stop.check()
    seed_default_generators("validation", job.config.seed)
    job.model.eval()
    with state.ema.applied():
        values = job.validate(split, stop.check)
        numbers = {name: float(value) for name, value in values.items()}
    write_scalars(writer, "test", numbers, state.step)
    text = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
    log.info("Step %d, test: %s.", state.step, text)


def write_scalars(writer: ScalarWriter, split: str, numbers: dict[str, float], step: int) -> None:
    for name, value in numbers.items():
        writer.add_scalar(f"{split}/{name}", value, step)


def is_snapshot(state: TrainState, training: ml_collections.ConfigDict) -> bool:
    """Whether a snapshot and its samples are written at the step."""
    return state.step == training.n_iters or state.step % training.snapshot_freq == 0


def save(
    state: TrainState,
    config: ml_collections.ConfigDict,
    place: Workdir,
    values: dict[str, torch.Tensor],
) -> None:
    """Write a snapshot if one is due, else the resume point, if the step's `values` are finite."""
    require_finite(values, state.step)
    if not is_first():
        return
    if not is_snapshot(state, config.training):
        checkpoints.save(place.resume_point, state, config)
        return
    path = place.checkpoint(state.step // config.training.snapshot_freq)
    checkpoints.save(path, state, config)
    publish(path, place)
    log.info("Step %d: wrote %s.", state.step, path)


def publish(path: pathlib.Path, place: Workdir) -> None:
    """Link the newest checkpoint and the resume point to the snapshot at `path`."""
    for name in (place.checkpoint(), place.resume_point):
        checkpoints.publish(path, name)


def picture_files(
    state: TrainState, training: ml_collections.ConfigDict, place: Workdir
) -> tuple[pathlib.Path, pathlib.Path] | None:
    """The files of the step's samples; None if none are due, or both exist."""
    if not (training.snapshot_sampling and state.step and is_snapshot(state, training)):
        return None
    files = [place.snapshot_samples(state.step) / name for name in ("sample.png", "sample.np")]
    return None if all(path.exists() for path in files) else tuple(files)


def draw_pictures(state: TrainState, job: Job, place: Workdir, stop: StopRequest) -> None:
    """Write the job's samples with EMA weights, if they are due and missing.

    Raises:
        Stopped: a signal came; nothing is written.
    """
    files = picture_files(state, job.config.training, place)
    if files is None or not is_first():
        return
    stop.check()
    job.model.eval()
    with state.ema.applied():
        drawn = job.pictures(state.step, stop.check)
    if drawn is None:
        return
    images, columns = drawn
    save_picture(files[0], job.domain.picture(images, columns))
    with atomic_write(files[1]) as file:
        np.save(file, images)
    log.info("Step %d: drew %d samples in %s.", state.step, len(images), files[0].parent)


def progress_bar(state: TrainState, training: ml_collections.ConfigDict, unit: str) -> tqdm:
    return tqdm(
        total=training.n_iters * training.batch_size,
        initial=state.step * training.batch_size,
        unit=unit,
        unit_scale=True,
        desc="Training",
        disable=not is_first(),
        # In a log file a line every tenth of a second is too much.
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
