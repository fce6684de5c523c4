"""DLSM: class-guided sampling and evaluation on CIFAR100."""

from configs import common


def get_config():
    return common.dlsm_classifier(common.CIFAR100, "resnet34_cond")
