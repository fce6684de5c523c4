"""A middle-sized NCSN++ on CIFAR-10, for a part of an hour on one GPU: benchmarks/gpu.sh."""

from configs import common


def get_config():
    config = common.qc("u_ncsn", common.CIFAR10)
    config.compute.precision = "bf16"
    config.compute.compile = config.compute.channels_last = True

    config.model.num_res_blocks = 2
    config.model.ema_rate = 0.9995
    config.optim.lr = 4e-4
    config.optim.warmup = 1000

    training = config.training
    training.n_iters = 100000
    training.eval_freq = 1000
    training.snapshot_freq = 1000
    training.snapshot_freq_for_preemption = 1000
    training.snapshot_sampling = False

    config.sampling.method = "heun"
    config.eval.features = "classifier"  # Inception's weights need not be at hand
    config.eval.microbatch = 500
    return common.evaluated(config, num_samples=10000, batch_size=500, noise_levels=20)
