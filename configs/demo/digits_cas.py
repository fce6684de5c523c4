"""The demo's classification accuracy score: a small network instead of a ResNet-50."""

from configs import common
from configs.demo import digits_classifier


def get_config():
    config = digits_classifier.small(common.dlsm_cas("digits", "resnet_small_cond"))
    config.cas.model = "small_cnn"
    config.eval.num_samples_all = 300
    config.optim.lr = 1e-3

    training = config.training
    training.batch_size = 50
    training.n_iters = 600
    training.snapshot_freq = 600
    training.snapshot_freq_for_preemption = 300
    return config
