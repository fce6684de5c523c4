"""Constrained NCSN++ on CIFAR-100: PC sampling and evaluation."""

from configs import common


def get_config():
    return common.qc("c_ncsn", common.CIFAR100)
