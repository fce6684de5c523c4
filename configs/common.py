"""The published values, once. Every file under configs/ calls one of these functions.

A new configuration is a file with a `get_config()` that calls one of them and changes what
differs.
"""

import ml_collections
from ml_collections.config_dict import placeholder

CIFAR10, CIFAR100, SVHN, IMAGENET = "CIFAR10", "CIFAR100", "SVHN", "imagenet"


def base(dataset):
    """What all published configurations share; one network, one SDE, one optimiser."""
    config = ml_collections.ConfigDict()
    config.seed = 42
    config.device = "auto"  # CUDA where there is one

    config.compute = compute = ml_collections.ConfigDict()
    compute.precision = "fp32"  # or tf32, bf16, see models/compute.py
    compute.channels_last = False
    compute.compile = False

    config.data = data = ml_collections.ConfigDict()
    data.dataset = dataset
    data.root = "data"
    data.cache = "data/cache"
    data.image_size = 32
    data.image_width = placeholder(int)  # none: images are square
    data.num_channels = 3
    data.random_flip = dataset != IMAGENET
    data.centered = False
    data.uniform_dequantization = False

    config.model = model = ml_collections.ConfigDict()
    model.name = "ncsnpp"
    model.energy = False
    model.sigma_min = 0.01
    model.sigma_max = 50.0
    model.beta_min = 0.1
    model.beta_max = 20.0
    model.num_scales = 1000
    model.nf = 128
    model.ch_mult = (1, 2, 2, 2)
    model.num_res_blocks = 8
    model.attn_resolutions = (16,)
    model.dropout = 0.1 if dataset != IMAGENET else 0.0
    model.nonlinearity = "swish"
    model.embedding_type = "fourier"
    model.fourier_scale = 16.0
    model.conditional = True
    model.resblock_type = "biggan"
    model.fir = True
    model.fir_kernel = (1, 3, 3, 1)
    model.resamp_with_conv = True
    model.skip_rescale = True
    model.progressive = "none"
    model.progressive_input = "residual"
    model.progressive_combine = "sum"
    model.init_scale = 0.0
    model.scale_by_sigma = True
    model.num_classes = placeholder(int)  # none: the network takes no labels
    model.ema_rate = 0.999

    config.optim = optim = ml_collections.ConfigDict()
    optim.optimizer = "Adam"
    optim.lr = 2e-4
    optim.beta1 = 0.9
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.warmup = 5000
    optim.grad_clip = 1.0

    config.training = training = ml_collections.ConfigDict()
    training.sde = "vesde"
    training.continuous = True
    training.likelihood_weighting = False
    training.reduce_mean = False
    training.eps = 1e-5
    training.batch_size = 128  # of all processes together
    training.microbatch = placeholder(int)  # images of a process at a time; none: all of its own
    training.label_dropout = 0.1  # share of labels that a network which takes them is not told
    training.checkpoint_activations = False  # of NCSN++: less memory, one more forward pass
    training.log_freq = 50
    training.eval_freq = 100
    training.snapshot_sampling = True
    training.wandb_project = placeholder(str)  # of Weights & Biases; none: nothing is sent

    config.sampling = sampling = ml_collections.ConfigDict()
    sampling.method = "pc"
    sampling.predictor = "reverse_diffusion"
    sampling.corrector = "langevin"
    sampling.snr = 0.16
    sampling.n_steps_each = 1
    sampling.probability_flow = False
    sampling.noise_removal = True
    sampling.last_step_snr = 0.036
    sampling.num_scales = placeholder(int)  # steps of the sampler; none: model.num_scales
    sampling.max_nfe = 10_000  # evaluations after which the sampler ode gives up
    sampling.steps = 18  # of the samplers that are neither pc nor ode, see samplers/fast.py
    sampling.grid = "karras"  # of their noise levels; or geometric, log_snr
    sampling.guidance_interval = ()  # two noise levels between which alone they guide
    sampling.batch_size = 36  # of the sample grids drawn during training

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.nearest_k = 3
    evaluation.kid_subset_size = 1000
    evaluation.features = "inception"  # or tfhub, dinov2, classifier: see metrics/extractors.py
    evaluation.inception_weights = placeholder(str)  # none: the cached or downloaded ones
    evaluation.dinov2_weights = placeholder(str)  # the file dinov2_vitl14_pretrain.pth
    evaluation.trust_weights = False  # accept a file that is not the published one
    evaluation.block_bytes = 2**28  # of distances at a time
    evaluation.microbatch = 128  # images of a batch that a network takes at a time
    evaluation.max_nfe = 10_000  # evaluations after which the likelihood's ODE gives up
    return config


SHARED = (
    *("name", "energy", "sigma_min", "sigma_max", "beta_min", "beta_max", "num_scales"),
    *("dropout", "ema_rate", "score_restore_path", "classifier_restore_path"),
    *("loss_type", "weighting_dlsm", "weighting_ce", "coef"),
)


def other_network(config, name, **options):
    """`config` with the network `name` and its `options` in place of NCSN++ and its own."""
    for field in list(config.model):
        if field not in SHARED:
            del config.model[field]
    config.model.name = name
    for field, value in options.items():
        config.model[field] = value
    return config


# ---------------------------------------------------------------- DLSM


def _dlsm(dataset):
    config = base(dataset)
    config.training.eps = 1e-3
    config.training.snapshot_freq = 50000
    config.training.snapshot_freq_for_preemption = 10000
    config.sampling.last_step_snr = 0.0
    config.sampling.atol = 1e-5
    config.sampling.rtol = 1e-5
    return config


def dlsm_score(dataset):
    """Score model training: configs/score."""
    config = _dlsm(dataset)
    config.training.n_iters = 950001
    return config


def _dlsm_classifier(dataset, network):
    """What training, sampling and CAS of a class-conditional model share."""
    config = _dlsm(dataset)
    config.data.random_flip = False
    config.optim.warmup = 1000 if dataset == CIFAR100 else 0
    del config.training.eps  # the samplers' smallest time, the SDE's own, is the classifier's too
    del config.training.checkpoint_activations
    del config.training.label_dropout

    config.classifier = classifier = ml_collections.ConfigDict()
    classifier.model = network
    classifier.classes = 100 if dataset == CIFAR100 else 10
    classifier.nf = 32
    classifier.fourier_scale = 16.0

    model = config.model
    model.loss_type = "total"
    model.weighting_dlsm = 0.0
    model.weighting_ce = 0.0
    model.coef = 1.0
    model.score_restore_path = f"results/score_{dataset.lower()}/checkpoints/checkpoint.pth"
    model.classifier_restore_path = placeholder(str)  # none: the workdir's own

    config.sampling.scaling_factor = 1.0
    return config


def dlsm_classifier(dataset, network):
    """Classifier training: configs/classifier."""
    config = _dlsm_classifier(dataset, network)
    training = config.training
    training.batch_size = 150
    training.n_iters = 60001 if dataset == CIFAR100 else 60000
    training.eval_freq = 500
    training.snapshot_freq = 50000 if dataset == CIFAR100 else 5000
    return config


def _class_samples(evaluation, dataset):
    evaluation.batch_size = 100
    evaluation.num_samples = 60000 if dataset == CIFAR100 else 51000  # of all classes together
    evaluation.num_samples_all = 50000
    evaluation.num_divisions = 1
    evaluation.batch_splits = 5
    evaluation.checkpoint_idx = placeholder(int)  # none: the newest


def dlsm_evaluation(dataset, network):
    """Class-guided sampling and evaluation: configs/eval."""
    config = _dlsm_classifier(dataset, network)
    _class_samples(config.eval, dataset)
    return config


def dlsm_cas(dataset, network):
    """Classification accuracy score: configs/eval, …_cas."""
    config = dlsm_evaluation(dataset, network)
    training = config.training
    training.batch_size = 150
    training.n_iters = 400001
    training.eval_freq = 200
    training.snapshot_sampling = False
    config.cas = ml_collections.ConfigDict()
    config.cas.model = "resnet50"
    return config


def classifier_free(config):
    """Class-wise sampling and evaluation of the class-conditional score that `config` trains."""
    config.model.score_restore_path = placeholder(str)  # none: the workdir's own
    config.sampling.scaling_factor = 1.0
    if "num_samples" not in config.eval:  # as in a configuration for training alone
        _class_samples(config.eval, config.data.dataset)
    return config


# ---------------------------------------------------------------- QC


def evaluated(config, *, num_samples, batch_size, noise_levels):
    """A QC training's `config` with what sampling and evaluation read: one division of samples."""
    evaluation = config.eval
    evaluation.batch_size = batch_size
    evaluation.num_samples = num_samples
    evaluation.num_divisions = 1
    evaluation.checkpoint_idx = placeholder(int)
    evaluation.noise_levels = noise_levels
    evaluation.total_repeat = 1
    evaluation.atol, evaluation.rtol = 1e-5, 1e-3
    return config


def _qc(kind, dataset):
    """`kind` is u_ncsn (unconstrained), c_ncsn (constrained) or qc_ncsn (quasi-conservative)."""
    config = base(dataset)
    config.model.energy = kind == "c_ncsn"
    config.sampling.atol = 1e-6
    config.sampling.rtol = 1e-4 if kind == "qc_ncsn" else 5e-5
    config.loss = ml_collections.ConfigDict()
    config.loss.slices = 1
    config.loss.estimator = "paper"  # or "skew", see models/jacobian.py
    config.loss.balancing_fac = 1e-4 if kind == "qc_ncsn" else 0.0
    return config


def qc_training(kind, dataset):
    """Training: configs/{u,c,qc}_ncsn/training."""
    config = _qc(kind, dataset)
    training = config.training
    training.snapshot_freq = 10000
    training.snapshot_freq_for_preemption = 10000
    training.snapshot_sampling = kind != "c_ncsn"
    # Where training resumes from a restored file that holds no step of its own.
    training.init_step = 300000 if dataset == SVHN else 600000
    if kind == "u_ncsn":
        training.n_iters = {CIFAR100: 300001, SVHN: 100001}.get(dataset, 450001)
    else:
        training.n_iters = 450001 if dataset == SVHN else 750001
    return config


def qc_evaluation(kind, dataset, ode=False):
    """Sampling and evaluation, PC or ODE: configs/{u,c,qc}_ncsn/evaluation."""
    config = _qc(kind, dataset)
    config.sampling.method = "ode" if ode else "pc"
    if kind == "c_ncsn" and dataset == SVHN and not ode:
        config.sampling.snr = 0.001
        config.sampling.noise_removal = False

    evaluation = config.eval
    evaluation.batch_size = {CIFAR100: 2500, SVHN: 2610}.get(dataset, 100)
    if dataset == IMAGENET and kind != "c_ncsn":
        evaluation.batch_size = 256
    evaluation.num_samples, evaluation.num_divisions = 50000, 10
    if dataset == SVHN:
        evaluation.num_samples, evaluation.num_divisions = 26032, 5
    elif kind == "u_ncsn" and not ode:
        evaluation.num_samples, evaluation.num_divisions = 30000, 6
    evaluation.checkpoint_idx = placeholder(int)  # none: the newest
    evaluation.noise_levels = 100
    evaluation.total_repeat = 1
    evaluation.atol, evaluation.rtol = 1e-5, 1e-3  # of the likelihood's ODE
    return config


# ---------------------------------------------------------------- images of one's own


def own_images(root, image_size, num_channels, *, sigma_max, num_scales, snr):
    """Training, sampling and evaluation on the folder `root`: what planning/images.py writes."""
    config = qc_training("u_ncsn", "folder")
    config.eval = qc_evaluation("u_ncsn", "folder").eval
    config.data.root = root
    config.data.image_size = image_size
    config.data.num_channels = num_channels
    config.model.sigma_max = sigma_max
    config.model.num_scales = num_scales
    config.sampling.snr = snr
    return config
