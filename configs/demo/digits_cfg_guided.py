"""The class-conditional digits, 30 of each class, by classifier-free guidance."""

from configs.demo import digits_cfg


def get_config():
    config = digits_cfg.get_config()
    config.eval.batch_size = 30
    config.eval.num_samples = 300
    config.eval.num_samples_all = 300
    return config
