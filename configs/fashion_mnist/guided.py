"""Fashion-MNIST by class, guided by the classifier that classifier.py trains."""

from configs import common
from configs.fashion_mnist import classifier, score


def get_config():
    config = classifier.small(common.dlsm_evaluation("FashionMNIST", "resnet_small_cond"))
    config = score.evaluated(config)
    config.eval.batch_size = 100
    return config
