"""Quasi-conservative NCSN++ on SVHN: training."""

from configs import common


def get_config():
    return common.qc_training("qc_ncsn", common.SVHN)
