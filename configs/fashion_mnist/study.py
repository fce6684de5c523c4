"""What the studies of Fashion-MNIST share: the score model, fine-tuned and measured."""

from configs import common
from configs.fashion_mnist import score


def evaluated(config):
    """`config` with 1,000 samples by default, and what the commands of evaluation read."""
    evaluation = config.eval
    evaluation.batch_size = 250
    evaluation.num_samples = 1000
    evaluation.num_samples_all = 1000
    evaluation.num_divisions = 1
    evaluation.checkpoint_idx = common.placeholder(int)
    evaluation.noise_levels = 10
    evaluation.total_repeat = 1
    evaluation.atol, evaluation.rtol = 1e-5, 1e-3
    config.sampling.method = "heun"
    return config


def finetuned(steps):
    """The score model's configuration with so many further steps, from its last."""
    config = evaluated(score.get_config())
    config.model.ema_rate = 0.99  # a short training wants a short average
    config.optim.warmup = 0
    config.optim.lr = 3e-4

    training = config.training
    training.batch_size = 32
    training.init_step = training.n_iters  # where the model that is restored does not say
    training.n_iters += steps
    training.snapshot_freq = steps
    training.snapshot_freq_for_preemption = 50
    training.eval_freq = steps
    training.snapshot_sampling = False
    return config
