"""Fashion-MNIST by class, by classifier-free guidance of the score that cfg.py trains."""

from configs.fashion_mnist import cfg


def get_config():
    config = cfg.get_config()
    config.eval.batch_size = 100
    config.eval.num_samples = config.eval.num_samples_all = 1000
    return config
