"""The published values. Every file under configs/ calls one of these functions.

A new configuration is a file with a `get_config()` that calls one of them and changes fields.
"""

import ml_collections
from ml_collections.config_dict import placeholder

CIFAR10, CIFAR100, SVHN, IMAGENET = "CIFAR10", "CIFAR100", "SVHN", "imagenet"


def base(dataset):
    """What all published configurations share, with every section and field that commands read."""
    config = ml_collections.ConfigDict()
    config.seed = 42
    config.device = "auto"  # CUDA where there is one

    config.compute = compute = ml_collections.ConfigDict()
    compute.precision = "fp32"  # or tf32, bf16, see models/compute.py
    compute.channels_last = False
    compute.compile = placeholder(bool)  # none: on CUDA where training carries tangents

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
    data.holdout = 0.0  # share of the images of the data set folder that are the test split

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
    model.preconditioning = placeholder(str)  # none, or edm, see models/edm.py
    model.sigma_data = 0.5  # root mean square of the data, for edm
    model.ema_rate = 0.999
    model.score_restore_path = placeholder(str)  # none: the one in the workdir

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
    # Of DSM; none: variance, or likelihood by likelihood_weighting. See losses.WEIGHTINGS.
    training.weighting = placeholder(str)
    training.times = "uniform"  # or log_normal, of σ: see losses.TIMES
    training.log_sigma_mean = -1.2
    training.log_sigma_std = 1.2
    training.eps = 1e-5
    training.n_iters = 450001
    training.init_step = 0  # of a restored file without a step
    training.batch_size = 128  # of all processes together
    training.microbatch = placeholder(int)  # images of a process at a time; none: all
    training.label_dropout = 0.1  # share of labels that are dropped, with model.num_classes
    training.log_freq = 50
    training.eval_freq = 100
    training.profile_steps = placeholder(int)  # of a profiler's trace; none: no trace
    training.snapshot_freq = 10000
    training.snapshot_freq_for_preemption = 10000
    training.snapshot_sampling = True

    config.loss = loss = ml_collections.ConfigDict()
    loss.slices = 1
    loss.estimator = "paper"  # or "skew", see models/jacobian.py
    loss.balancing_fac = 0.0

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
    sampling.max_nfe = 10_000  # evaluations after which the sampler ode fails
    sampling.steps = 18  # of the samplers that are neither pc nor ode, see samplers/fast.py
    sampling.grid = "karras"  # of their noise levels; or geometric
    sampling.guidance_interval = ()  # two noise levels; they guide only between these
    sampling.batch_size = 36  # of the sample grids drawn during training
    sampling.atol = 1e-5  # of the sampler ode
    sampling.rtol = 1e-5
    sampling.scaling_factor = 1.0  # of the guidance, where samples are drawn by class
    # Samples of another scale are in eval_samples_scale{S}; none: that of scaling_factor.
    sampling.plain_scale = placeholder(float)

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.checkpoint_idx = placeholder(int)  # none: the newest
    evaluation.batch_size = 100
    evaluation.num_samples = 50000  # of all divisions or classes together
    evaluation.num_samples_all = 50000  # of all classes together, for the metrics
    evaluation.num_divisions = 10
    evaluation.batch_splits = 5
    evaluation.num_images = placeholder(int)  # of the NLL and the asymmetry; none: the test split
    evaluation.noise_levels = 100  # of the asymmetry
    evaluation.total_repeat = 1
    evaluation.atol = 1e-5  # of the likelihood's ODE
    evaluation.rtol = 1e-3
    evaluation.nearest_k = 3
    evaluation.real_split = "train"  # or test: the real images that samples are compared with
    evaluation.kid_subset_size = 1000
    evaluation.features = "inception"  # or tfhub, dinov2, classifier: see metrics/extractors.py
    evaluation.inception_weights = placeholder(str)  # none: the cached or downloaded ones
    evaluation.dinov2_weights = placeholder(str)  # the file dinov2_vitl14_pretrain.pth
    evaluation.microbatch = 128  # images of a batch that a network takes at a time
    evaluation.max_nfe = 10_000  # evaluations after which the likelihood's ODE fails
    return config


SHARED = (
    "name energy sigma_min sigma_max beta_min beta_max num_scales preconditioning sigma_data "
    "dropout ema_rate score_restore_path classifier_restore_path loss_type weighting_dlsm "
    "weighting_ce coef"
).split()


def other_network(config, name, **options):
    """`config` with the network `name` and its `options` in place of those of NCSN++."""
    for field in list(config.model):
        if field not in SHARED:
            del config.model[field]
    config.model.name = name
    for field, value in options.items():
        config.model[field] = value
    return config


# ---------------------------------------------------------------- diffusers


def diffusers(dataset, pretrained=None):
    """A UNet2DModel of the package diffusers, described by its directory: configs/diffusers."""
    config = other_network(
        qc("u_ncsn", dataset),
        "diffusers",
        pretrained=placeholder(str) if pretrained is None else pretrained,
        unet=placeholder(str),  # this and the next are taken from there
        prediction_type="epsilon",  # or v_prediction
        beta_schedule="linear",  # or scaled_linear, squaredcos_cap_v2
        num_classes=placeholder(int),
    )
    config.data.centered = True
    config.model.dropout = 0.0
    config.training.sde = "ddpm"
    config.training.continuous = False
    config.training.init_step = 0
    config.optim.lr = 2e-5  # of a fine-tuning
    config.optim.warmup = 500
    config.sampling.method = "dpmpp_2m"
    config.sampling.steps = 20
    return config


# ---------------------------------------------------------------- DLSM


def _dlsm(dataset):
    config = base(dataset)
    config.training.eps = 1e-3
    config.training.snapshot_freq = 50000
    config.sampling.last_step_snr = 0.0
    return config


def dlsm_score(dataset):
    """The score model: configs/score."""
    config = _dlsm(dataset)
    config.training.n_iters = 950001
    return config


# What only the training of a score model reads.
OF_DSM = "eps", "label_dropout", "weighting", "times", "log_sigma_mean", "log_sigma_std"


def dlsm_classifier(dataset, network):
    """The classifier, class-guided sampling and evaluation: configs/classifier, configs/eval."""
    config = _dlsm(dataset)
    config.eval.num_samples = 60000 if dataset == CIFAR100 else 51000
    config.eval.num_divisions = 1
    config.data.random_flip = False
    config.optim.warmup = 1000 if dataset == CIFAR100 else 0

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
    model.classifier_restore_path = placeholder(str)  # none: the one in the workdir

    training = config.training
    training.batch_size = 150
    training.n_iters = 60001 if dataset == CIFAR100 else 60000
    training.eval_freq = 500
    training.snapshot_freq = 50000 if dataset == CIFAR100 else 5000
    # The classifier's smallest time is the SDE's, as in sampling.
    for name in OF_DSM:
        del training[name]
    return config


def dlsm_cas(dataset, network):
    """The classification accuracy score: configs/eval, …_cas."""
    config = dlsm_classifier(dataset, network)
    training = config.training
    training.n_iters = 400001
    training.eval_freq = 200
    training.snapshot_freq = 50000
    training.snapshot_sampling = False
    config.cas = ml_collections.ConfigDict()
    config.cas.model = "resnet50"
    return config


# ---------------------------------------------------------------- QC


def evaluated(config, *, num_samples, batch_size, noise_levels):
    """`config` with other numbers of samples, in one division, and of noise levels."""
    evaluation = config.eval
    evaluation.batch_size = batch_size
    evaluation.num_samples = num_samples
    evaluation.num_divisions = 1
    evaluation.noise_levels = noise_levels
    return config


def qc(kind, dataset, ode=False):
    """Training, sampling (PC or ODE) and evaluation: configs/{u,c,qc}_ncsn.

    `kind` is u_ncsn (unconstrained), c_ncsn (constrained) or qc_ncsn (quasi-conservative).
    """
    config = base(dataset)
    config.model.energy = kind == "c_ncsn"
    config.loss.balancing_fac = 1e-4 if kind == "qc_ncsn" else 0.0

    training = config.training
    training.snapshot_sampling = kind != "c_ncsn"
    training.init_step = 300000 if dataset == SVHN else 600000
    if kind == "u_ncsn":
        training.n_iters = {CIFAR100: 300001, SVHN: 100001}.get(dataset, 450001)
    else:
        training.n_iters = 450001 if dataset == SVHN else 750001

    sampling = config.sampling
    sampling.method = "ode" if ode else "pc"
    sampling.atol = 1e-6
    sampling.rtol = 1e-4 if kind == "qc_ncsn" else 5e-5
    if kind == "c_ncsn" and dataset == SVHN and not ode:
        sampling.snr = 0.001
        sampling.noise_removal = False

    evaluation = config.eval
    evaluation.batch_size = {CIFAR100: 2500, SVHN: 2610}.get(dataset, 100)
    if dataset == IMAGENET and kind != "c_ncsn":
        evaluation.batch_size = 256
    if dataset == SVHN:
        evaluation.num_samples, evaluation.num_divisions = 26032, 5
    elif kind == "u_ncsn" and not ode:
        evaluation.num_samples, evaluation.num_divisions = 30000, 6
    return config


# ---------------------------------------------------------------- images of one's own


def own_images(
    root,
    image_size,
    num_channels,
    *,
    images,
    held_out,
    holdout,
    sigma_max,
    on_cpu=False,
):
    """Training, sampling and evaluation on the folder `root`: what scripts/own_images.py writes.

    Args:
        images, held_out: how many are trained on, and how many are not.
        holdout: the share of the images that the data set ``folder`` is to hold out.
        on_cpu: a small network, and steps for a few minutes.
    """
    config = qc("u_ncsn", "folder")
    config.data.root = root
    config.data.image_size = image_size
    config.data.num_channels = num_channels
    config.data.holdout = holdout

    model, training = config.model, config.training
    model.sigma_max = sigma_max
    if on_cpu:
        training.batch_size = 16
        training.n_iters = 1500
        model.nf = 16
        model.ch_mult = (1, 2, 4)
        model.num_res_blocks = 1
        model.dropout = 0.0
        config.optim.lr = 2e-3
    else:
        training.batch_size = 128 if images >= 10000 else 64
        # As many epochs as the published runs on CIFAR-10, within limits.
        training.n_iters = min(max(1000 * images // training.batch_size, 20000), 450000)
        model.num_res_blocks = 4 if images >= 10000 else 2
    config.optim.warmup = min(training.n_iters // 10, 5000)
    training.snapshot_freq = training.n_iters // 5
    training.snapshot_freq_for_preemption = training.eval_freq = training.n_iters // 20
    training.init_step = 0

    sampling, evaluation = config.sampling, config.eval
    sampling.method = "dpmpp_2m_sde"  # its noise corrects errors of a short training
    sampling.steps = 40
    sampling.batch_size = 16
    evaluated(config, num_samples=min(images, 50000), batch_size=100, noise_levels=10)
    evaluation.num_samples_all = evaluation.num_samples
    evaluation.kid_subset_size = max(2, min(held_out // 2, 1000))
    evaluation.real_split = "test" if held_out else "train"
    return config
