"""Training a score network by `run_lib.train`."""

import torch

import datasets
import losses
import models
import sampling
import sde_lib
from models import compute


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
        models.checkpoint_activations(self.model, config.training.checkpoint_activations)
        self.score = models.create_score(config, self.model, self.sde)
        self.objective = losses.score_objective(config, self.score, self.sde)

    def splits(self):
        """The training and the test images."""
        return datasets.load(self.config.data, "train"), datasets.load(self.config.data, "test")

    @torch.no_grad()
    def validate(self, images, labels, split):
        """The DSM loss of a fixed batch of the test `split`, at stratified times."""
        return validation_means(self, self.objective.evaluate, images, labels)

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


def validation_means(job, evaluate, images, labels):
    """Means of ``evaluate(x, labels, draws)``, a dict, over uint8 images, at stratified times."""
    config = job.config
    x = datasets.to_model(images.to(job.device), config.data, train=False)
    draws = job.objective.draw(x)
    draws["u"] = losses.stratified(draws["u"])
    size = config.training.microbatch or config.training.batch_size
    means = {}
    for share, part in losses.parts_of(x, labels.to(job.device), draws, size):
        for name, value in evaluate(*part).items():
            means[name] = means.get(name, 0) + share * value
    return means
