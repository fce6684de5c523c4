"""Constrained NCSN++ on SVHN: PC sampling and evaluation."""

from configs.c_ncsn.training.svhn_ncsnpp_deep_continuous import get_config as get_config
