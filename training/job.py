"""What the training loop asks of a training job."""

from collections.abc import Callable
from typing import Protocol

import ml_collections
import numpy as np
import torch

from datasets import Split
from domains import Images, Points
from losses import Objective


class Job(Protocol):
    """What is trained: a score model, a noise-conditioned classifier, or the CAS's classifier.

    Attributes:
        config: the configuration of the run; its checkpoints keep it.
        device: where it is trained.
        domain: images or points, and how they are scaled for the model.
        model: the network that is trained.
        objective: the loss of a batch.
        ema_rate: of the averages of the weights, with which validation and pictures are made.
    """

    config: ml_collections.ConfigDict
    device: torch.device
    domain: Images | Points
    model: torch.nn.Module
    objective: Objective
    ema_rate: float

    def splits(self) -> tuple[Split, Split | None]:
        """The training and the test data; None for a test split that the set has not.

        Raises:
            UserError: the data do not fit the model.
        """

    def validate(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        split: Split,
        callback: Callable[[], object],
    ) -> dict[str, torch.Tensor | float]:
        """Named values to report, of a fixed batch of the test `split` and of the whole of it.

        Args:
            images: the batch as it is stored, uint8 (B, C, H, W) or points (B, D).
            labels: (B,).
            callback: called without arguments before each part of the work.
        """

    def pictures(
        self, step: int, callback: Callable[[], object]
    ) -> tuple[np.ndarray, int | None] | None:
        """Samples as they are stored and the columns of their grid; None: the job draws none.

        Args:
            callback: called without arguments after each step of the sampler.
        """


MakeJob = Callable[[ml_collections.ConfigDict, torch.device], Job]
