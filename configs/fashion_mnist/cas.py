"""The classification accuracy score of Fashion-MNIST's samples, of a small network."""

from configs import common
from configs.fashion_mnist import classifier


def get_config():
    config = classifier.small(common.dlsm_cas("FashionMNIST", "resnet_small_cond"))
    config.cas.model = "small_cnn"
    config.eval.num_samples_all = 1000
    config.optim.lr = 1e-3

    training = config.training
    training.batch_size = 50
    training.n_iters = 1000
    training.eval_freq = 1000
    training.snapshot_freq = 1000
    training.snapshot_freq_for_preemption = 500
    return config
