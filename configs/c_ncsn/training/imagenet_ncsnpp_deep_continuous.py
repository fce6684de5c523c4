"""Constrained NCSN++ on ImageNet-32: training."""

from configs import common


def get_config():
    return common.qc("c_ncsn", common.IMAGENET)
