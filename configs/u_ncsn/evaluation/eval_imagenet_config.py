"""Unconstrained NCSN++ on ImageNet-32: PC sampling and evaluation."""

from configs import common


def get_config():
    return common.qc("u_ncsn", common.IMAGENET)
