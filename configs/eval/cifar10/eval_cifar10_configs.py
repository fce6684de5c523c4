"""DLSM: class-guided sampling and evaluation on CIFAR10."""

from configs import common


def get_config():
    return common.dlsm_classifier(common.CIFAR10, "resnet18_cond")
