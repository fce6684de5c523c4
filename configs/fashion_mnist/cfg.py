"""Fine-tuning of Fashion-MNIST's score model to a class-conditional one."""

from configs.fashion_mnist import study


def get_config():
    config = study.finetuned(steps=2000)
    config.model.num_classes = 10
    config.optim.lr = 1e-3  # at 3e-4 it learns the classes slowly
    return config
