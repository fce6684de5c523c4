"""What run_lib_evaluation.py --folders A B takes when it is given no --config."""

from configs import common


def get_config():
    config = common.base(common.CIFAR10)
    config.eval.batch_size = 100
    return config
