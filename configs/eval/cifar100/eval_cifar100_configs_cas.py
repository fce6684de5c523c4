"""DLSM: classification accuracy score on CIFAR100."""

from configs import common


def get_config():
    return common.dlsm_cas(common.CIFAR100, "resnet34_cond")
