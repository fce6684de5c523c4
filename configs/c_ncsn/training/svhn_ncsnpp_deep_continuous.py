"""Constrained NCSN++ on SVHN: training."""

from configs import common


def get_config():
    return common.qc("c_ncsn", common.SVHN)
