"""The interface between the training loop and a training job."""

from collections.abc import Callable
from typing import Protocol

import ml_collections
import numpy as np
import torch

from datasets import Split
from domains import Images, Points
from losses import Objective


class Job(Protocol):
    """A score model, a noise-conditioned classifier, or the classifier of CAS.

    Attributes:
        config: the configuration of the run, which its checkpoints hold.
        device: the device of the training.
        domain: images or points, and their scaling.
        model: the network that is trained.
        objective: the loss of a batch.
        ema_rate: decay rate of the EMA weights, which validation and snapshot samples use.
    """

    config: ml_collections.ConfigDict
    device: torch.device
    domain: Images | Points
    model: torch.nn.Module
    objective: Objective
    ema_rate: float

    def splits(self) -> tuple[Split, Split | None]:
        """The training and the test data; None where the data set has no test split.

        Raises:
            UserError: the data do not fit the model.
        """

    def validate(
        self, split: Split, callback: Callable[[], object]
    ) -> dict[str, torch.Tensor | float]:
        """Named values of the test `split` or a fixed part of it.

        Args:
            callback: called without arguments before each batch.
        """

    def pictures(
        self, step: int, callback: Callable[[], object]
    ) -> tuple[np.ndarray, int | None] | None:
        """Stored samples and the columns of their grid; None if the job draws none.

        Args:
            callback: called after each step of the sampler.
        """


MakeJob = Callable[[ml_collections.ConfigDict, torch.device], Job]
