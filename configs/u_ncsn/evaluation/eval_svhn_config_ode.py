"""Unconstrained NCSN++ on SVHN: ODE sampling and evaluation."""

from configs import common


def get_config():
    return common.qc("u_ncsn", common.SVHN, ode=True)
