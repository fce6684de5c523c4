"""Constrained NCSN++ on CIFAR-100: PC sampling and evaluation."""

from configs.c_ncsn.training.cifar100_ncsnpp_deep_continuous import get_config as get_config
