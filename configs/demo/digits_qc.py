"""The demo's quasi-conservative fine-tuning, from the model that digits.py trained."""

from configs.demo import digits

STEPS = 150


def get_config():
    config = digits.get_config()
    config.loss.balancing_fac = 0.01
    config.training.n_iters += STEPS
    config.training.batch_size = 32
    config.training.eval_freq = STEPS
    config.training.snapshot_sampling = False
    config.eval.batch_size = 360
    return config
