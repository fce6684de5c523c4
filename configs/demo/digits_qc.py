"""The demo's fine-tuning of results/demo: quasi-conservative, or not with --balancing_fac 0."""

from configs.demo import digits


def get_config():
    config = digits.get_config()
    config.loss.balancing_fac = 0.03
    config.model.ema_rate = 0.99  # a short training needs a short average
    config.optim.warmup = 0
    config.optim.lr = 3e-4

    training = config.training
    training.batch_size = 32
    training.n_iters += 450
    training.snapshot_freq = training.snapshot_freq_for_preemption = 150
    training.eval_freq = 150
    training.snapshot_sampling = False
    config.eval.batch_size = 360
    config.eval.noise_levels = 10
    return config
