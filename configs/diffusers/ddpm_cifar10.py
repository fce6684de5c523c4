"""The DDPM of CIFAR-10 on the Hugging Face hub (Ho et al., NeurIPS 2020), to fine-tune by QC."""

from configs import common


def get_config():
    config = common.diffusers("CIFAR10", "google/ddpm-cifar10-32")
    config.loss.balancing_fac = 1e-4
    config.training.n_iters = 10001
    config.training.snapshot_freq = 5000
    return config
