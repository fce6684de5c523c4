"""The demo's noise-conditioned classifier, trained against the score model of results/demo."""

from configs import common
from configs.demo import digits


def small(config):
    """`config` with the demo's digits, score model and classifier."""
    config = digits.small(config)
    config.model.score_restore_path = "results/demo/checkpoints/checkpoint.pth"
    return config


def get_config():
    config = small(common.dlsm_classifier("digits", "resnet_small_cond"))
    config.optim.lr = 1e-3
    config.optim.warmup = 100

    training = config.training
    training.batch_size = 64
    training.n_iters = 900
    training.eval_freq = 300
    training.snapshot_freq = 900
    training.snapshot_freq_for_preemption = 300
    training.snapshot_sampling = False
    return config
