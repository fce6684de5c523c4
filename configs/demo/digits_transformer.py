"""A transformer on the demo's digits, quasi-conservative from its first step."""

from configs import common
from configs.demo import digits


def get_config():
    config = common.other_network(
        digits.get_config(),
        "transformer",
        patch_size=2,
        width=64,
        depth=2,
        heads=4,
        mlp_ratio=4,
        fourier_scale=1.0,
    )
    config.training.n_iters = 1500
    config.loss.balancing_fac = 0.01
    config.loss.estimator = "skew"
    return config
