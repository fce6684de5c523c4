"""Training: one loop, top to bottom, for whatever job it is handed.

The loop knows nothing of score models or classifiers. It asks a training job for its model, its
objective, its images, its validation and its pictures; `ScoreTraining` is one such job.
"""

import contextlib
import dataclasses
import os
import signal
import sys

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import checkpoints
import config_ranges
import datasets
import distributed
import losses
import models
import sampling
import sde_lib
from models import compute
from models.ema import EMA
from models.scores import EnergyScore, Score
from scalars import ScalarWriter
from utils import (
    UserError,
    atomic_write,
    get_device,
    is_first,
    log,
    log_to,
    rank_and_size,
    save_image_grid,
    seed_for,
)
from workdir import Workdir


class ScoreTraining:
    """A score network with its denoising score matching objective.

    Raises:
        UserError: the configuration names an unknown network, SDE or sampler.
    """

    def __init__(self, config, device):
        self.config = config
        self.device = device
        self.ema_rate = config.model.ema_rate
        self.sde = sde_lib.from_config(config)
        self.sampler = sampling.from_config(config.sampling, self.sde)
        self.model = compute.prepare(models.create_model(config), config.compute, device)
        self.model.checkpoint_activations = config.training.checkpoint_activations
        self.score = make_score(config, self.model, self.sde)
        self.objective = losses.score_objective(config, self.score, self.sde)

    def splits(self):
        """The training and the test images."""
        return datasets.load(self.config.data, "train"), datasets.load(self.config.data, "test")

    @torch.no_grad()
    def validate(self, batches):
        """The DSM loss on the next batch of `batches` (images, labels)."""
        images, labels = next(batches)
        x = datasets.to_model(images.to(self.device), self.config.data, train=False)
        return self.objective.evaluate(x, labels.to(self.device))

    def pictures(self, step):
        """Samples as uint8 (N, H, W, C), and the columns of their grid."""
        noise = sampling.SeededNoise(self.device, "pictures", self.config.seed, step)
        data = self.config.data
        shape = (
            self.config.sampling.batch_size,
            data.num_channels,
            data.image_size,
            data.image_size,
        )
        x, _ = self.sampler(self.score, noise.randn(shape), noise.randn_like)
        return datasets.to_uint8(datasets.inverse_scaler(x, data)), None


def make_score(config, network, sde):
    """The score that ``config.model`` describes, of a network that takes x and a condition."""
    if not config.model.energy:
        return Score(network, sde, config.training.continuous)
    if not (isinstance(sde, sde_lib.VESDE) and config.training.continuous):
        raise UserError("config.model.energy needs the continuous VE SDE (training.sde=vesde).")
    return EnergyScore(network, sde)


@dataclasses.dataclass(frozen=True)
class LoadedFrom:
    """Which weights a network was loaded from: their step and their fingerprint."""

    step: int
    fingerprint: str


def load_score(config, path, sde, device, use_ema=True):
    """The score of the checkpoint at `path`, in eval mode, with averaged or raw weights.

    Returns:
        The score and a `LoadedFrom`.

    Raises:
        UserError: the checkpoint is missing or does not fit the configuration.
    """
    network = models.create_model(config)
    content = checkpoints.read(path)
    checkpoints.require_kind(content, path, "score model")
    checkpoints.load_model(network, content, path)
    if use_ema:
        ema = EMA(network.parameters(), config.model.ema_rate)
        checkpoints.load_ema(ema, content, path)
        ema.copy_to_parameters()
    compute.prepare(network, config.compute, device).eval().requires_grad_(False)
    step = checkpoints.read_count(content, "step", path, 0)
    return (
        make_score(config, network, sde),
        LoadedFrom(step, checkpoints.fingerprint(network.parameters())),
    )


def train(config, workdir, restore=None, make_job=ScoreTraining):
    """Train until ``config.training.n_iters`` updates are done; run again, it continues.

    The processes that torchrun started train together, see `distributed`.

    Args:
        workdir: name of the run, see `Workdir`.
        restore: checkpoint to start from, unless the workdir has a resume point.
        make_job: what is trained, a function of (config, device) such as `ScoreTraining`.

    Returns:
        The job, whose model has the weights of the last step.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    # Check everything that can be checked before the first file is written.
    config_ranges.check(config)
    training = config.training
    device = get_device(config.device)
    torch.manual_seed(seed_for("weights", config.seed))
    job = make_job(config, device)
    require_divisible(job.model, training)
    parameters = list(job.model.parameters())
    state = checkpoints.TrainState(
        model=job.model,
        ema=EMA(parameters, job.ema_rate),
        optimizer=losses.make_optimizer(parameters, config.optim),
    )
    place = Workdir(workdir)
    place.check()
    origin = restore_state(state, config, place, restore)
    train_split, test_split = job.splits()

    # Open the workdir.
    place.create()
    log_to(place.log_file)
    log.info(
        "Training on %d images of %s: %s parameters, %s, batch %d, to step %d.",
        len(train_split),
        config.data.dataset,
        f"{sum(p.numel() for p in parameters):,}",
        device,
        training.batch_size,
        training.n_iters,
    )
    log.info(origin)
    if state.step >= training.n_iters:
        log.info("Step %d is not before the last, %d: nothing to do.", state.step, training.n_iters)
        return job
    batches = datasets.TrainBatches(
        train_split, training.batch_size, config.seed, position=state.position
    )
    test_batches = datasets.TrainBatches(test_split, training.batch_size, config.seed)

    # Train.
    watch = FiniteWatch(device)
    with contextlib.ExitStack() as stack:
        if is_first():
            stack.enter_context(place.sole_trainer())
            writer = ScalarWriter(place.tensorboard, purge_step=state.step)
            stack.callback(writer.close)
        world = stack.enter_context(distributed.join(job))
        stop = stack.enter_context(StopRequest())
        stack.enter_context(logging_redirect_tqdm([log]))
        bar = stack.enter_context(progress_bar(state, training))
        while state.step < training.n_iters:
            values = training_step(state, job, batches, config, world)
            watch.see(state.step, values["loss"], values["grad_norm"])
            bar.update(training.batch_size)

            if state.step % training.log_freq == 0:
                watch.check()
                numbers = {name: float(value) for name, value in values.items()}
                bar.set_postfix(step=state.step, loss=f"{numbers['loss']:.4g}")
                if is_first():
                    write_scalars(writer, "train", numbers, state.step)
            if state.step % training.eval_freq == 0 and is_first():
                validate(state, job, test_batches, config, writer)
            last = state.step == training.n_iters
            if last or state.step % training.snapshot_freq == 0:
                watch.check()
                if is_first():
                    snapshot(state, job, config, place)
            stopped_by = world.largest(stop.signal)
            if stopped_by or last or state.step % training.snapshot_freq_for_preemption == 0:
                watch.check()
                if is_first():
                    checkpoints.save(place.resume_point, state, config)
            if stopped_by and not last:
                log.info(
                    "Stopped by %s after step %d; the same command continues from there.",
                    signal.Signals(stopped_by).name,
                    state.step,
                )
                world.largest(0)  # torchrun ends all processes when the first of them exits
                sys.exit(128 + stopped_by)
    log.info("Trained to step %d; checkpoints are in %s.", state.step, place.checkpoints)
    return job


def require_divisible(model, training):
    """Check that the batch can be shared out as ``config.training.microbatch`` and torchrun ask.

    Raises:
        UserError: the processes do not divide it, or the microbatch splits what a batch norm must
            see whole.
    """
    _, size = rank_and_size()
    if training.batch_size % size:
        raise UserError(
            f"config.training.batch_size is {training.batch_size}; {size} processes need a "
            f"multiple of {size}."
        )
    if training.microbatch is None:
        return
    share, microbatch = training.batch_size // size, training.microbatch
    norms = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if norms and microbatch < share:
        raise UserError(
            f"config.training.microbatch is {microbatch}, but this network has batch norms, which "
            "need the whole batch at once; leave it out."
        )


def restore_state(state, config, place, restore):
    """Fill `state` from the resume point, else from `restore`; says in a sentence from where."""
    if place.resume_point.exists():
        content = checkpoints.read(place.resume_point)
        checkpoints.load_training(state, content, place.resume_point)
        note = "; --restore is ignored" if restore else ""
        return f"Continuing from the resume point at step {state.step}{note}."
    if restore is None:
        return "Starting from new weights."
    content = checkpoints.read(restore)
    checkpoints.load_training(state, content, restore, config.training.get("init_step", 0))
    return f"Restored {restore} at step {state.step}."


def training_step(state, job, batches, config, world):
    """One update; returns the detached values of the objective and the gradient norm."""
    # Seeding each step by its number makes its draws a function of (seed, step): a run that is
    # cut anywhere and continued draws what an uninterrupted one draws.
    torch.manual_seed(seed_for("training step", config.seed, state.step))
    images, labels = next(batches)
    images, labels = (datasets.upload(part, job.device) for part in (images, labels))
    x = datasets.to_model(images, config.data, train=True)
    draws = job.objective.draw(x)
    part = rows_of(x, labels, draws, world.rows(len(x)))
    if world.size > 1:
        # Unlike the draws above, dropout's masks depend on the number of processes.
        torch.manual_seed(seed_for("dropout", config.seed, state.step, world.rank))
    job.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    values = accumulate_gradients(world.objective, *part, config.training.microbatch)
    norm = losses.optimize(state.optimizer, state.ema.parameters, state.step, config.optim)
    state.ema.update()
    state.step += 1
    state.position = batches.position
    return dict(world.means(values), grad_norm=norm)


def rows_of(x, labels, draws, rows):
    """A part of a batch, as an objective takes it."""
    return x[rows], labels[rows], {name: draw[rows] for name, draw in draws.items()}


def accumulate_gradients(objective, x, labels, draws, microbatch):
    """Add the gradient of a batch's mean loss, `microbatch` images at a time; None: all at once.

    Returns:
        The objective's values, means over the batch.
    """
    size = microbatch or len(x)
    means = {}
    for start in range(0, len(x), size):
        last = start + size >= len(x)
        part = rows_of(x, labels, draws, slice(start, start + size))
        share = len(part[0]) / len(x)
        with contextlib.nullcontext() if last else distributed.accumulating(objective):
            loss, values = objective(*part)
            (share * loss).backward()
        for name, value in values.items():
            means[name] = means.get(name, 0) + share * value
    return means


def validate(state, job, batches, config, writer):
    """Write the job's validation values, with averaged weights, to the log and TensorBoard."""
    torch.manual_seed(seed_for("validation", config.seed, state.step))
    job.model.eval()
    with state.ema.applied():
        numbers = {name: float(value) for name, value in job.validate(batches).items()}
    write_scalars(writer, "test", numbers, state.step)
    text = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
    log.info("Step %d, test: %s.", state.step, text)


def write_scalars(writer, split, numbers, step):
    for name, value in numbers.items():
        writer.add_scalar(f"{split}/{name}", value, step)


def snapshot(state, job, config, place):
    """Write ``checkpoint_{step // snapshot_freq}.pth``, its newest name, and sample pictures."""
    path = place.checkpoint(state.step // config.training.snapshot_freq)
    checkpoints.save(path, state, config)
    checkpoints.publish_newest(path, place.checkpoint())
    log.info("Step %d: wrote %s.", state.step, path)
    if not config.training.snapshot_sampling:
        return
    job.model.eval()
    with state.ema.applied():
        images, columns = job.pictures(state.step)
    folder = place.snapshot_samples(state.step)
    save_image_grid(folder / "sample.png", images, columns)
    with atomic_write(folder / "sample.np") as file:
        np.save(file, images)
    log.info("Step %d: drew %d samples in %s.", state.step, len(images), folder)


def progress_bar(state, training):
    return tqdm(
        total=training.n_iters * training.batch_size,
        initial=state.step * training.batch_size,
        unit="img",
        unit_scale=True,
        desc="Training",
        disable=not is_first(),
        # A log file needs no line every tenth of a second.
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )


class FiniteWatch:
    """Finds the first step with a non-finite loss or gradient without a transfer every step."""

    NONE = 2**62
    NAMES = ("loss", "gradient")

    def __init__(self, device):
        self.first_bad = torch.full((len(self.NAMES),), self.NONE, device=device)

    def see(self, step, loss, grad_norm):
        finite = torch.isfinite(torch.stack([loss, grad_norm]))
        self.first_bad = torch.where(finite, self.first_bad, self.first_bad.clamp(max=step))

    def check(self):
        """Raise a UserError that names the first step, if there was one, and what went wrong."""
        steps = self.first_bad.tolist()
        step = min(steps)
        if step != self.NONE:
            raise UserError(
                f"The {self.NAMES[steps.index(step)]} stopped being finite at step {step}; the "
                "last checkpoint is from before. Lower --config.optim.lr or look at the data."
            )


@dataclasses.dataclass
class StopRequest:
    """While active, SIGTERM and Ctrl-C only leave a note; the loop stops at the end of a step."""

    signal: int = 0

    def __enter__(self):
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        # A second Ctrl-C leaves at once. SIGTERM may come twice unasked: from a scheduler, to all
        # processes, and once more from torchrun.
        if self.signal and number == signal.SIGINT:
            os._exit(128 + number)
        self.signal = number
