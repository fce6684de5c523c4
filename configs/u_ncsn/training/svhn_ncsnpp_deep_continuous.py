"""Unconstrained NCSN++ on SVHN: training."""

from configs import common


def get_config():
    return common.qc("u_ncsn", common.SVHN)
