"""DLSM: the noise-conditioned classifier of CIFAR10."""

from configs import common


def get_config():
    return common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
