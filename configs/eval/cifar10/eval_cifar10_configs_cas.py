"""DLSM: classification accuracy score on CIFAR10."""

from configs import common


def get_config():
    return common.dlsm_cas(common.CIFAR10, "resnet18_cond")
