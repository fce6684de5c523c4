"""The demo's class-conditional digits: 30 of each class, guided by the demo's classifier."""

from configs import common
from configs.demo import digits_classifier


def get_config():
    config = digits_classifier.small(common.dlsm_classifier("digits", "resnet_small_cond"))
    # At scale 1 a sixth of the small score model's samples miss their class.
    config.sampling.scaling_factor = 2.0
    config.eval.batch_size = 30
    config.eval.num_samples = 300
    config.eval.num_samples_all = 300
    return config
