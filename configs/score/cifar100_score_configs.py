"""DLSM: the score model of CIFAR100."""

from configs import common


def get_config():
    return common.dlsm_score(common.CIFAR100)
