"""Labels as a network takes them: a class, or none."""

import torch
from torch import nn

NO_LABEL = -1


class LabelEmbedding(nn.Embedding):
    """A vector (B, width) for labels y (B,), of `classes` classes or `NO_LABEL`. At first zero."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(labels % self.num_embeddings)  # the last stands for no label
