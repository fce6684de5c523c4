"""A noise-conditioned classifier of Fashion-MNIST, trained against the score model of score.py."""

from configs import common
from configs.fashion_mnist import score


def small(config):
    """`config` with Fashion-MNIST, its score model and classifier."""
    config = score.small(config)
    config.model.score_restore_path = "results/fashion_mnist/checkpoints/checkpoint.pth"
    return config


def get_config():
    config = small(common.dlsm_classifier("FashionMNIST", "resnet_small_cond"))
    config.optim.lr = 1e-3
    config.optim.warmup = 100

    training = config.training
    training.batch_size = 64
    training.n_iters = 2000
    training.eval_freq = 2000
    training.snapshot_freq = 2000
    training.snapshot_freq_for_preemption = 100
    training.snapshot_sampling = False
    return config
