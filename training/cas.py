"""Training the classifier of the classification accuracy score, by `run_lib.train`."""

import dataclasses
from collections.abc import Callable

import ml_collections
import torch
import torch.nn.functional as F

import datasets
import domains
from datasets import Split
from losses import Draws
from models import compute
from models.cas import create_cas_classifier
from training.classifier import accuracy

SHARE = 0.02  # of the passes of a training, for its validations


@dataclasses.dataclass(frozen=True)
class CASObjective:
    """The cross-entropy of a classifier of images (B, C, H, W), without random draws."""

    classifier: torch.nn.Module

    def draw(self, x: torch.Tensor) -> Draws:
        return {}

    def __call__(
        self, x: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, Draws]:
        loss = F.cross_entropy(self.classifier(x).float(), labels)
        return loss, {"loss": loss.detach()}


class CASTraining:
    """The `Job` of a classifier of the images of `train_split`, tested on real ones.

    Raises:
        UserError: the configuration names an unknown network.
    """

    ema_rate = 0.0  # it is tested with its last weights

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        device: torch.device,
        train_split: Split,
        test_split: Split,
    ) -> None:
        self.config = config
        self.device = device
        self.domain = domains.images_of(config.data, "CAS")
        self.train_split, self.test_split = train_split, test_split
        network = create_cas_classifier(config, test_split.classes)
        self.model = compute.prepare(network, config.compute, device)
        self.objective = CASObjective(self.model)

    def splits(self) -> tuple[Split, Split]:
        return self.train_split, self.test_split

    def validate(self, split: Split, callback: Callable[[], object]) -> dict[str, float]:
        """The accuracy on a part of `split`; `run_lib_cas` tests on all of it."""
        training, size = self.config.training, self.config.training.batch_size
        # A training image takes three passes, forward and backward.
        count = int(SHARE * 3 * training.eval_freq * size)
        part = datasets.evenly(split, min(max(count, size), len(split)))
        right = accuracy(self.model, part, size, self.domain, self.device, callback)
        return {"accuracy": right}

    def pictures(self, step: int, callback: Callable[[], object]) -> None:
        """None: it draws no samples."""
