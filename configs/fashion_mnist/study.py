"""What the studies of Fashion-MNIST share: the score model, fine-tuned and measured."""

from configs.fashion_mnist import score


def finetuned(steps):
    """The score model's configuration with so many further steps, from its last."""
    config = score.get_config()
    config.model.ema_rate = 0.99  # a short training needs a short average
    config.optim.warmup = 0
    config.optim.lr = 3e-4

    training = config.training
    training.batch_size = 32
    training.init_step = training.n_iters  # if the restored file has no step
    training.n_iters += steps
    training.snapshot_freq = steps
    training.snapshot_freq_for_preemption = 50
    training.eval_freq = steps
    training.snapshot_sampling = False
    return config
