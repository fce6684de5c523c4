"""The demo's class-conditional digits: 50 of each class, guided by the demo's classifier."""

from configs import common
from configs.demo import digits_classifier


def get_config():
    config = digits_classifier.small(common.dlsm_evaluation("digits", "resnet_small_cond"))
    config.eval.batch_size = 50
    config.eval.num_samples = 500
    config.eval.num_samples_all = 500
    return config
