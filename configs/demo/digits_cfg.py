"""The demo's score model, class-conditional: its labels are dropped from a tenth of the images."""

from configs.demo import digits


def get_config():
    config = digits.get_config()
    config.model.num_classes = 10
    config.sampling.scaling_factor = 2.0
    return config
