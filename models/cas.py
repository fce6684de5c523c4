"""The classifiers of the classification accuracy score: images (B, C, H, W) to logits."""

import ml_collections
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from models.double_backward import BatchNorm2d
from utils import lookup


def resnet50(channels: int, classes: int) -> nn.Module:
    """torchvision's ResNet-50, with new weights."""
    network = torchvision.models.resnet50(weights=None, num_classes=classes, norm_layer=BatchNorm2d)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network


class AveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d(size)` of maps (B, C, H, W), by two matrix products.

    PyTorch's own has no deterministic backward pass on CUDA.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (
            F.adaptive_avg_pool1d(torch.eye(length, device=x.device, dtype=x.dtype), self.size)
            for length in x.shape[2:]
        )
        return rows.mT @ x @ columns


def small_cnn(channels: int, classes: int) -> nn.Module:
    """Two 3×3 convolutions and a hidden layer, for images too small for a ResNet-50."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        AveragePool(4),
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


CAS_CLASSIFIERS = {"resnet50": resnet50, "small_cnn": small_cnn}


def create_cas_classifier(config: ml_collections.ConfigDict, classes: int) -> nn.Module:
    """The freshly initialised classifier that ``config.cas.model`` names.

    Raises:
        UserError: the name is unknown.
    """
    build = lookup(CAS_CLASSIFIERS, config.cas.model, "config.cas.model")
    return build(config.data.num_channels, classes)
