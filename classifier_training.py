"""Training a noise-conditioned classifier against a frozen score model, by `run_lib.train`.

Chao et al., ICLR 2022, section 4. The objectives are `losses.DLSM` and `losses.CrossEntropy`.
"""

import torch

import checkpoints
import datasets
import losses
import models
import sampling
import sde_lib
from models import compute
from models.scores import GuidedScore
from score_training import LoadedFrom, load_score, validation_means
from utils import UserError


class ClassifierTraining:
    """A noise-conditioned classifier with the objective of ``config.model.loss_type``.

    The score model is the one of ``config.model.score_restore_path``, with averaged weights.

    Raises:
        UserError: the configuration names an unknown network, loss, SDE or sampler, or the score
            model's checkpoint is missing or does not fit.
    """

    # A classifier is used with its last weights: the running statistics of its batch norms are
    # those weights' own.
    ema_rate = 0.0

    def __init__(self, config, device):
        self.config = config
        self.device = device
        self.sde = sde_lib.from_config(config)
        self.sampler = sampling.from_config(config.sampling, self.sde)
        self.model = compute.prepare(models.create_classifier(config), config.compute, device)
        self.score, _ = load_score(config, config.model.score_restore_path, self.sde, device)
        self.objective = losses.classifier_objective(config, self.model, self.score, self.sde)

    def splits(self):
        """The training and the test images.

        Raises:
            UserError: the data have another number of classes than the classifier.
        """
        data = self.config.data
        splits = datasets.load(data, "train"), datasets.load(data, "test")
        classes = self.config.classifier.classes
        if classes != splits[0].classes:
            raise UserError(
                f"config.classifier.classes is {classes}, but {data.dataset} has "
                f"{splits[0].classes} classes; they must be the same."
            )
        return splits

    @torch.no_grad()
    def validate(self, images, labels, split):
        """The objective's values on a fixed batch; the accuracy on the whole test `split`."""
        values = validation_means(self, self.values, images, labels)
        size = self.config.training.batch_size
        right = accuracy(self.logits, split, size, self.config.data, self.device)
        return dict(values, accuracy=right)

    def values(self, x, labels, draws):
        """What the objective reports."""
        return self.objective(x, labels, draws)[1]

    def logits(self, x):
        """Logits (B, classes) of images x (B, C, H, W) perturbed to the smallest time."""
        t = torch.full((len(x),), self.sde.sampling_eps, device=x.device)
        return self.model(*losses.perturb(self.sde, x, t, torch.randn_like(x)))

    def pictures(self, step):
        """Guided samples as uint8 (N, H, W, C), a row for each class, and the rows' length."""
        noise = sampling.SeededNoise(self.device, "pictures", self.config.seed, step)
        classes, data = self.config.classifier.classes, self.config.data
        columns = max(1, self.config.sampling.batch_size // classes)
        labels = torch.arange(classes, device=self.device).repeat_interleave(columns)
        score = GuidedScore(
            self.score, self.model, self.sde, labels, self.config.sampling.scaling_factor
        )
        shape = (len(labels), data.num_channels, data.image_size, data.image_size)
        x, _ = self.sampler(score, noise.randn(shape), noise.randn_like)
        return datasets.to_uint8(datasets.inverse_scaler(x, data)), columns


def load_classifier(config, path, device):
    """The classifier of the checkpoint at `path`, in eval mode.

    Returns:
        The network and a `LoadedFrom`.

    Raises:
        UserError: the checkpoint is missing or does not fit the configuration.
    """
    network = models.create_classifier(config)
    content = checkpoints.read(path)
    checkpoints.require_kind(content, path, "classifier")
    checkpoints.load_model(network, content, path)
    step = checkpoints.read_count(content, "step", path, 0)
    loaded = LoadedFrom(step, checkpoints.fingerprint(network.state_dict().values()))
    return compute.freeze(network, config.compute, device), loaded


@torch.no_grad()
def accuracy(logits, split, batch_size, data, device):
    """Share of the images of `split` whose label has the largest of ``logits(x)`` (B, classes)."""
    right = 0
    for images, labels in datasets.eval_batches(split, batch_size):
        x = datasets.to_model(images.to(device), data, train=False)
        right += int((logits(x).argmax(1).cpu() == labels).sum())
    return right / len(split)
