"""Fashion-MNIST by class, guided by the classifier that classifier.py trains."""

from configs import common
from configs.fashion_mnist import classifier


def get_config():
    config = classifier.small(common.dlsm_classifier("FashionMNIST", "resnet_small_cond"))
    config.eval.num_samples = config.eval.num_samples_all = 1000
    return config
