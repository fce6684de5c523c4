"""The classifiers of the classification accuracy score: images (B, C, H, W) to logits."""

import ml_collections
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


def small_cnn(channels: int, classes: int) -> nn.Module:
    """Two 3×3 convolutions and a hidden layer, for images too small for a ResNet-50."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
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
