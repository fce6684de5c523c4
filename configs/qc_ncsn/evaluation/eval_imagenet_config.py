"""Quasi-conservative NCSN++ on ImageNet-32: PC sampling and evaluation."""

from configs.qc_ncsn.training.imagenet_ncsnpp_deep_continuous import get_config as get_config
