"""Training a class-conditional score together with its unconditional one.

Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, algorithm 1.
"""

import dataclasses

import torch

from losses import DSM, Draws
from models.labels import NO_LABEL

DRAW = "label"


@dataclasses.dataclass(frozen=True)
class LabelDropout:
    """The objective of a label-conditioned score; each label is dropped with `probability`.

    Args:
        objective: DSM or a subclass, with the score of a network that takes labels.
        probability: share of the labels that are dropped.
    """

    objective: DSM
    probability: float

    def draw(self, x: torch.Tensor) -> Draws:
        """The objective's draws, and uniform draws (B,) for the labels."""
        return {**self.objective.draw(x), DRAW: torch.rand(len(x), device=x.device)}

    def kept(self, labels: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The labels (B,), with `NO_LABEL` for dropped ones."""
        return torch.where(draws[DRAW] < self.probability, NO_LABEL, labels)

    def conditioned_on(self, labels: torch.Tensor, draws: Draws) -> tuple[DSM, Draws]:
        """The objective with the score of the kept labels, and its draws."""
        rest = {name: draw for name, draw in draws.items() if name != DRAW}
        score = self.objective.score.conditioned_on(self.kept(labels, draws))
        return dataclasses.replace(self.objective, score=score), rest

    def __call__(
        self, x: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, Draws]:
        objective, draws = self.conditioned_on(labels, draws)
        return objective(x, labels, draws)

    def evaluate(self, x: torch.Tensor, labels: torch.Tensor, draws: Draws) -> Draws:
        objective, draws = self.conditioned_on(labels, draws)
        return objective.evaluate(x, labels, draws)
