"""The papers' experiments in the plane: data sets of points and the networks for them."""

import ml_collections

from configs import common


def base(dataset, count):
    """Points drawn from a seed, on a CPU; VE SDE, no EMA, no warm-up, no dropout, no pictures."""
    config = common.other_network(common.base(dataset), "plane")
    config.device = "cpu"

    config.data = data = ml_collections.ConfigDict()
    data.dataset = dataset
    data.root = "data"
    data.cache = "data/cache"
    data.dimensions = 2
    data.num_points = count
    data.data_seed = 0

    config.model.dropout = 0.0
    config.model.ema_rate = 0.0
    config.optim.warmup = 0

    training = config.training
    training.snapshot_sampling = False
    training.eval_freq = 1000

    return common.evaluated(config, num_samples=5000, batch_size=5000, noise_levels=10)


def plane(dataset, kind):
    """A model of Chao et al. (ICML 2023, section 3.2): usbm, qcsbm or csbm.

    The paper's loss has no ½. With it here, clipping and Adam's eps are half the paper's: the
    steps are then the same, the scale being a power of two.
    """
    config = base(dataset, 50000)
    model = config.model
    model.energy = kind == "csbm"
    model.activation = "leaky_relu" if dataset == "gaussian_8" else "elu"
    model.sigma_min, model.sigma_max = 0.1, 3.0

    optim = config.optim
    optim.lr = 7.5e-4
    optim.grad_clip = 0.5
    optim.eps = 5e-9

    loss = config.loss
    loss.slices = 2
    loss.estimator = "exact"
    loss.balancing_fac = 0.05 if kind == "qcsbm" else 0.0

    training = config.training
    training.batch_size = 5000
    training.n_iters = 4000 if dataset == "checkerboard" else 2000
    training.snapshot_freq = training.snapshot_freq_for_preemption = 500
    config.sampling.method = "ode"
    config.sampling.rtol = 1e-3
    return config


def moons():
    """The score model of Chao et al. (ICLR 2022) on two half-moons."""
    config = base("moons", 10000)
    model = config.model
    model.name = "moons"
    model.sigma_min, model.sigma_max = 1e-3, 10.0
    config.optim.lr = 6.5e-4
    config.optim.grad_clip = 1e6  # none
    config.training.batch_size = 4000
    config.training.n_iters = 40002
    config.training.snapshot_freq = config.training.snapshot_freq_for_preemption = 5000
    config.training.eval_freq = config.training.log_freq = 5000
    return config


MOONS_RATES = {"ce": 1e-5, "dlsm": 2e-5, "total": 1e-5}


def moons_classifier(loss_type, score_path):
    """A classifier on the half-moons with the loss `loss_type` and the score at `score_path`."""
    config = moons()
    del config.training.eps
    config.optim.lr = MOONS_RATES[loss_type]
    config.classifier = ml_collections.ConfigDict({"model": "moons", "classes": 2})
    model = config.model
    model.loss_type = loss_type
    model.weighting_dlsm, model.weighting_ce = 2.0, 0.0
    model.coef = 0.125
    model.score_restore_path = str(score_path)
    model.classifier_restore_path = common.placeholder(str)
    return config
