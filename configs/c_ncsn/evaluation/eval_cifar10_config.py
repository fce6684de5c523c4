"""Constrained NCSN++ on CIFAR-10: PC sampling and evaluation."""

from configs.c_ncsn.training.cifar10_ncsnpp_deep_continuous import get_config as get_config
