"""Class labels of images, or none, as inputs of a network."""

import numpy as np
import torch
from torch import nn

from utils import random_stream

NO_LABEL = -1


class LabelEmbedding(nn.Embedding):
    """Embedding vectors (B, width) of labels y (B,), of `classes` classes or `NO_LABEL`.

    The vector of `NO_LABEL` is zero at first: a score that becomes class-conditional is unchanged
    without labels. Vectors of classes are initialised from N(0, I), so that they differ from the
    first step on (docs/dlsm.md). They have a random generator of their own, which leaves the
    initial weights of other layers unchanged.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)

    def reset_parameters(self) -> None:
        start = random_stream("label embedding").standard_normal(self.weight.shape, np.float32)
        start[NO_LABEL] = 0
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(start))

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(labels % self.num_embeddings)  # the last row is for no label
