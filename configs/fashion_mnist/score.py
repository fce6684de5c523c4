"""NCSN++ on Fashion-MNIST, hours on two CPU cores: the model under pretrained/."""

from configs import common


def small(config):
    """`config` for Fashion-MNIST's 28×28 images on a CPU: data and a network that suits them."""
    config.device = "cpu"

    config.data.image_size = 28
    config.data.num_channels = 1
    config.data.random_flip = False  # shoes point to the left

    config.eval.features = "classifier"  # Inception does not suit 28×28 grey images

    model = config.model
    model.nf = 16
    model.ch_mult = (1, 2, 4)
    model.num_res_blocks = 2
    model.attn_resolutions = (7,)
    model.dropout = 0.0
    model.sigma_max = 24.0  # beyond the largest distance of two images

    # At 2,000 evaluations the published sampler would take minutes per image. The noise of this one
    # corrects errors of a short training; deterministic samplers do not, see pretrained/.
    config.sampling.method = "dpmpp_2m_sde"
    config.sampling.steps = 40
    return config


def get_config():
    config = small(common.qc("u_ncsn", "FashionMNIST"))
    config.optim.lr = 1e-3
    config.optim.warmup = 500

    training = config.training
    training.batch_size = 64
    training.n_iters = 13448  # about four hours of one core; more make it better
    training.eval_freq = 500
    training.snapshot_freq = 2000
    training.snapshot_freq_for_preemption = 200
    return common.evaluated(config, num_samples=1000, batch_size=250, noise_levels=10)
