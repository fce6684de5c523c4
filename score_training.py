"""Training a score network by `run_lib.train`, and loading what came of it."""

import dataclasses

import torch

import checkpoints
import datasets
import losses
import models
import sampling
import sde_lib
from models import compute
from models.ema import EMA
from models.scores import EnergyScore, Score
from utils import UserError


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
    step = checkpoints.read_count(content, "step", path, 0)
    loaded = LoadedFrom(step, checkpoints.fingerprint(network.parameters()))
    compute.freeze(network, config.compute, device)
    return make_score(config, network, sde), loaded


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
