"""A UNet2DModel of one's own, --config.model.pretrained=DIRECTORY, on a folder of images."""

from configs import common


def get_config():
    config = common.diffusers("folder")
    config.training.n_iters = 10001
    config.training.snapshot_freq = 5000
    return config
