"""Unconstrained NCSN++ on ImageNet-32: PC sampling and evaluation."""

from configs.u_ncsn.training.imagenet_ncsnpp_deep_continuous import get_config as get_config
