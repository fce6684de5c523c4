"""The demo: a small NCSN++ on scikit-learn's 8×8 digits, minutes on two CPU cores."""

from configs import common


def small(config):
    """`config` for 8×8 digits on a CPU: the data and a network that suits them."""
    config.device = "cpu"

    config.data.image_size = 8
    config.data.num_channels = 1
    config.data.random_flip = False  # a mirrored digit is no digit

    config.eval.features = "classifier"  # Inception does not suit 8×8 digits

    model = config.model
    model.nf = 24
    model.ch_mult = (1, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = (4,)
    model.dropout = 0.0
    # From half a grey level (there are 17) to beyond the largest distance of two digits, 4.8.
    model.sigma_min = 0.03
    model.sigma_max = 6.0
    model.num_scales = 100
    return config


def get_config():
    config = small(common.qc("u_ncsn", "digits"))

    config.optim.lr = 1.5e-3
    config.optim.warmup = 200

    training = config.training
    training.batch_size = 64
    training.n_iters = 2500
    training.eval_freq = 500
    training.snapshot_freq = 1000
    training.snapshot_freq_for_preemption = 1000

    config.sampling.atol = config.sampling.rtol = 1e-3
    return common.evaluated(config, num_samples=500, batch_size=250, noise_levels=20)
