"""Training a noise-conditioned classifier against a frozen score model, by `run_lib.train`.

Chao et al., ICLR 2022, section 4. The objectives are `losses.DLSM` and `losses.CrossEntropy`.
"""

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
from models import compute
from models.scores import GuidedScore
from models.trained import load_score
from samplers.deterministic import no_callback
from training.score import validation_means


class ClassifierTraining:
    """The `Job` of a noise-conditioned classifier, with the loss ``config.model.loss_type``.

    The score model is the one of ``config.model.score_restore_path``, with EMA weights.

    Raises:
        UserError: the configuration names an unknown network, loss, SDE or sampler, or the score
            model's checkpoint is missing or does not fit.
    """

    # A classifier is used with its last weights, since the batch norms' statistics are theirs.
    ema_rate = 0.0

    def __init__(self, config: ml_collections.ConfigDict, device: torch.device) -> None:
        trained = load_score(config, config.model.score_restore_path, device)
        self.config = config = trained.config
        self.device = device
        self.domain = domains.from_config(config.data)
        self.score, self.sde = trained.score, trained.sde
        self.sampler = sampling.from_config(config.sampling, self.sde)
        self.model = compute.prepare(models.create_classifier(config), config.compute, device)
        self.objective = losses.classifier_objective(config, self.model, self.score, self.sde)

    def splits(self) -> tuple[datasets.Split, datasets.Split | None]:
        classes = self.config.classifier.classes
        return datasets.load_both(self.config.data, classes, "config.classifier.classes")

    @torch.no_grad()
    def validate(
        self, split: datasets.Split, callback: Callable[[], object]
    ) -> dict[str, torch.Tensor | float]:
        """The objective's values of a fixed batch, and the accuracy on the whole test `split`."""

        def values(*batch):
            return self.objective(*batch)[1]

        means = validation_means(self, values, split, callback)
        size = self.config.training.batch_size
        right = accuracy(self.logits, split, size, self.domain, self.device, callback)
        return dict(means, accuracy=right)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of images x (B, C, H, W) perturbed to the smallest time."""
        t = torch.full((len(x),), self.sde.sampling_eps, device=x.device)
        return self.model(*sde_lib.perturb(self.sde, x, t, torch.randn_like(x)))

    def pictures(self, step: int, callback: Callable[[], object]) -> tuple[np.ndarray, int]:
        """Guided samples, a row for each class."""
        noise = sampling.SeededNoise(self.device, "pictures", self.config.seed, step)
        classes = self.config.classifier.classes
        columns = max(1, self.config.sampling.batch_size // classes)
        labels = torch.arange(classes, device=self.device).repeat_interleave(columns)
        score = GuidedScore(
            self.score, self.model, self.sde, labels, self.config.sampling.scaling_factor
        )
        latents = noise.randn((len(labels), *self.domain.shape))
        x, _ = self.sampler(score, latents, noise.randn_like, callback)
        return self.domain.to_stored(x), columns


@torch.no_grad()
def accuracy(
    logits: Callable[[torch.Tensor], torch.Tensor],
    split: datasets.Split,
    batch_size: int,
    domain: domains.Images | domains.Points,
    device: torch.device,
    callback: Callable[[], object] = no_callback,
) -> float:
    """Share of the images of `split` for which ``logits(x)`` (B, classes) predicts the label.

    `callback()` is called before each batch.
    """
    right = 0
    for images, labels in datasets.eval_batches(split, batch_size):
        callback()
        x = domain.to_model(images.to(device), train=False)
        right += int((logits(x).argmax(1).cpu() == labels).sum())
    return right / len(split)
