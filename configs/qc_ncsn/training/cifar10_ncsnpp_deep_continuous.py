"""Quasi-conservative NCSN++ on CIFAR-10: training."""

from configs import common


def get_config():
    return common.qc("qc_ncsn", common.CIFAR10)
