"""DLSM: class-guided sampling and evaluation on CIFAR10."""

from configs.classifier.cifar10_classifier_resnet18_cond_configs import get_config as get_config
