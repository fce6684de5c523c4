"""Fashion-MNIST by class, by classifier-free guidance of the score that cfg.py trains."""

from configs import common
from configs.fashion_mnist import cfg


def get_config():
    config = common.classifier_free(cfg.get_config())
    config.eval.batch_size = 100
    config.eval.num_samples_all = 1000
    return config
