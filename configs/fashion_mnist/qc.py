"""Fine-tuning of Fashion-MNIST's score model: quasi-conservative, or not with --balancing_fac 0."""

from configs.fashion_mnist import study


def get_config():
    config = study.finetuned(steps=600)
    config.loss.balancing_fac = 0.03
    return config
