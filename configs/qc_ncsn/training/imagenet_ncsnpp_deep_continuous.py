"""Quasi-conservative NCSN++ on ImageNet-32: training."""

from configs import common


def get_config():
    return common.qc("qc_ncsn", common.IMAGENET)
