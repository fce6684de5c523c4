"""Training a score network by `run_lib.train`."""

import collections
from collections.abc import Callable

import ml_collections
import numpy as np
import torch

import datasets
import domains
import losses
import models
import sampling
import sde_lib
from losses import Draws
from models import compute
from training.job import Job
from training.labels import LabelDropout

VALIDATION_IMAGES = 128


class ScoreTraining:
    """The `Job` of a score network with its denoising score matching objective.

    Raises:
        UserError: the configuration names an unknown network, SDE or sampler.
    """

    def __init__(self, config: ml_collections.ConfigDict, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.domain = domains.from_config(config.data)
        self.ema_rate = config.model.ema_rate
        self.sde = sde_lib.from_config(config)
        self.sampler = sampling.from_config(config.sampling, self.sde)
        self.model = models.create_model(config)
        self.score = models.create_score(config, self.model, self.sde)
        self.objective = losses.score_objective(config, self.score, self.sde)
        carries_tangents = isinstance(self.objective, (losses.QuasiConservative, losses.EnergyDSM))
        compute.prepare(self.model, config.compute, device, carries_tangents)
        if config.model.get("num_classes"):
            self.objective = LabelDropout(self.objective, config.training.label_dropout)

    def splits(self) -> tuple[datasets.Split, datasets.Split | None]:
        classes = self.config.model.get("num_classes")
        return datasets.load_both(self.config.data, classes, "config.model.num_classes")

    @torch.no_grad()
    def validate(
        self, split: datasets.Split, callback: Callable[[], object]
    ) -> dict[str, torch.Tensor]:
        """The DSM loss of a fixed batch, at stratified times."""
        return validation_means(self, self.objective.evaluate, split, callback)

    def pictures(self, step: int, callback: Callable[[], object]) -> tuple[np.ndarray, None]:
        noise = sampling.SeededNoise(self.device, "pictures", self.config.seed, step)
        shape = (self.config.sampling.batch_size, *self.domain.shape)
        x, _ = self.sampler(self.score, noise.randn(shape), noise.randn_like, callback)
        return self.domain.to_stored(x), None


def validation_means(
    job: Job,
    evaluate: Callable[[torch.Tensor, torch.Tensor, Draws], Draws],
    split: datasets.Split,
    callback: Callable[[], object],
) -> dict[str, torch.Tensor]:
    """Means of ``evaluate(x, labels, draws)`` over a fixed batch of `split`, at stratified times.

    `callback()` is called before each part of the images.
    """
    training = job.config.training
    images, labels = datasets.fixed_batch(split, VALIDATION_IMAGES, job.config.seed)
    x = job.domain.to_model(images.to(job.device), train=False)
    draws = job.objective.draw(x)
    draws["u"] = losses.stratified(draws["u"])
    means = collections.Counter()
    size = training.microbatch or training.batch_size
    for share, part in losses.parts_of(x, labels.to(job.device), draws, size):
        callback()
        for name, value in evaluate(*part).items():
            means[name] += share * value
    return dict(means)
