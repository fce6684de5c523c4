"""DLSM: class-guided sampling and evaluation on CIFAR100."""

from configs.classifier.cifar100_classifier_resnet34_cond_configs import get_config as get_config
