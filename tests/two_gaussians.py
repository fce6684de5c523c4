"""Two Gaussian classes in the plane, whose score and likelihood score are known."""

import dataclasses

import torch

import sde_lib
from models.scores import input_gradient


@dataclasses.dataclass(frozen=True)
class TwoGaussians:
    """N(m_y, s² I), equally likely; points are (B, 2), labels (B,), times (B,)."""

    sde: sde_lib.SDE
    means: tuple = ((-1.0, 0.0), (1.0, 0.0))
    std: float = 0.2

    def sample(self, count):
        """Points and labels, half of each class."""
        labels = torch.arange(count) % 2
        return torch.tensor(self.means)[labels] + self.std * torch.randn(count, 2), labels

    def classifier(self, x, sigma):
        """log p_t(x | y) up to a constant, (B, 2): the logits of the exact classifier."""
        squares = (x[:, None] - x.new_tensor(self.means)).square().sum(2)
        variance = self.std**2 + sigma[:, None] ** 2
        return -squares / (2 * variance) - torch.log(variance)

    def score(self, x, t):
        """∇ₓ log p_t(x) of the mixture."""
        _, sigma = self.sde.marginal_prob(x, t)
        with torch.no_grad():
            return input_gradient(lambda x: self.classifier(x, sigma).logsumexp(1), x)
