"""Training the classifier of the classification accuracy score, by `run_lib.train`."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F

import domains
from datasets import Split
from losses import Draws
from models import compute
from models.cas import create_cas_classifier
from storage.files import save_json
from training.classifier import accuracy
from utils import UserError, is_first


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of a classifier of images (B, C, H, W); nothing is random."""

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

    `record` is the file that notes the images that the run was begun with.

    Raises:
        UserError: the configuration names an unknown network, or the run has other images.
    """

    ema_rate = 0.0  # it is tested with its last weights

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        device: torch.device,
        train_split: Split,
        test_split: Split,
        record: pathlib.Path,
    ) -> None:
        self.config = config
        self.device = device
        self.domain = domains.images_of(config.data, "CAS")
        self.train_split, self.test_split = train_split, test_split
        self.record, self.fingerprint = record, fingerprint_of(train_split)
        if record.exists() and json.loads(record.read_text()) != self.fingerprint:
            raise UserError(
                f"{record.parent} was trained on other images than those given now; remove it to "
                "train anew, or use another --workdir."
            )
        network = create_cas_classifier(config, test_split.classes)
        self.model = compute.prepare(network, config.compute, device)
        self.objective = CrossEntropy(self.model)

    def splits(self) -> tuple[Split, Split]:
        """The training and the test images; the training ones are noted in `record`."""
        if is_first():
            save_json(self.record, self.fingerprint)
        return self.train_split, self.test_split

    def validate(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        split: Split,
        callback: Callable[[], object],
    ) -> dict[str, float]:
        """The accuracy on the whole test `split`."""
        size = self.config.training.batch_size
        right = accuracy(self.model, split, size, self.domain, self.device, callback)
        return {"accuracy": right}

    def pictures(self, step: int, callback: Callable[[], object]) -> None:
        """None: it draws no samples."""


def fingerprint_of(split: Split) -> dict[str, object]:
    """How many images a split has, and the SHA-256 hash of its images and labels."""
    digest = hashlib.sha256(np.ascontiguousarray(split.images))
    digest.update(np.ascontiguousarray(split.labels))
    return {"images": len(split), "sha256": digest.hexdigest()}
