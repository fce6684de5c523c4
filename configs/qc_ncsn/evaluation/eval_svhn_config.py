"""Quasi-conservative NCSN++ on SVHN: PC sampling and evaluation."""

from configs import common


def get_config():
    return common.qc("qc_ncsn", common.SVHN)
