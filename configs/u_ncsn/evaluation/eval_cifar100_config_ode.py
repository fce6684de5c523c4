"""Unconstrained NCSN++ on CIFAR-100: ODE sampling and evaluation."""

from configs import common


def get_config():
    return common.qc("u_ncsn", common.CIFAR100, ode=True)
