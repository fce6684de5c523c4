"""Labels as a network takes them: a class, or none."""

import numpy as np
import torch
from torch import nn

from utils import random_stream

NO_LABEL = -1


class LabelEmbedding(nn.Embedding):
    """A vector (B, width) for labels y (B,), of `classes` classes or `NO_LABEL`.

    At first that of `NO_LABEL` is zero, so that a score which is made class-conditional stays what
    it is without labels. Those of classes are N(0, I): they differ from the first step on, and the
    layers behind them have something to tell classes apart by (docs/dlsm.md). Networks of as many
    classes and the same width have the same draws, and no other weights' are moved by them.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)

    def reset_parameters(self) -> None:
        start = random_stream("label embedding").standard_normal(self.weight.shape, np.float32)
        start[NO_LABEL] = 0
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(start))

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(labels % self.num_embeddings)  # the last stands for no label
