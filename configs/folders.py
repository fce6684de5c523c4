"""What run_lib_evaluation.py --folders A B takes when it is given no --config."""

from configs import common


def get_config():
    return common.base("")  # the folders are all the data
