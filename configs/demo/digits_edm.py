"""The demo's score model with the preconditioning and the training of Karras et al. (2022)."""

from configs.demo import digits


def get_config():
    config = digits.get_config()
    config.data.centered = True

    model = config.model
    model.preconditioning = "edm"
    model.sigma_data = 0.85  # root mean square of the centred digits
    model.scale_by_sigma = False
    # Twice the demo's: the centred data are twice as wide.
    model.sigma_min = 0.06
    model.sigma_max = 12.0

    config.training.weighting = "edm"
    config.training.times = "log_normal"
    return config
