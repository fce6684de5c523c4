"""Classes of Fashion-MNIST: guided by CE, CE at scale 10, DLSM + CE, and classifier-free.

    python -m studies.dlsm --restore pretrained/fashion_mnist.pth

Trains classifiers against one restored score model, and makes the same score model
class-conditional, for each seed and in equal steps (configs/fashion_mnist/{classifier,cfg}.py),
under results/studies. DLSM + CE has the published weights, w = 0 and coef = 1, and besides w = 1
and coef = 0.02. Samples of each class come from one sampler in equal numbers of evaluations; one of
classifier guidance is a pass of the score and a pass and a gradient of the classifier, one of
classifier-free guidance is two passes of the score. Prints, mean ± standard deviation over seeds:
FID and P/R/D/C of all samples and as means over classes (CW), CAS, and the share of samples in
which the feature classifier sees the class asked for. Run again, it continues.
"""

import numpy as np
import torch
from absl import flags

import cli
import models
from configs.fashion_mnist import cfg
from models.trained import load_score
from storage.files import atomic_write, load_npz
from storage.workdir import Workdir
from studies import common
from utils import require_positive

CONFIGS = "configs/fashion_mnist"
CLASSES = 10
TRAIN_IMAGES, SAMPLES = 10_000, 500
SAMPLER, SAMPLER_STEPS = "dpmpp_2m_sde", 25
CFG_SCALES = 1, 2
CLASSIFIERS = {  # name -> workdir, flags of training
    "CE": ("base", ["--config.model.loss_type=ce"]),
    "DLSM + CE, w = 0": ("ours", []),
    "DLSM + 0.02 CE, w = 1": (
        "weighted",
        ["--config.model.weighting_dlsm=1", "--config.model.coef=0.02"],
    ),
}


def with_labels(config, source, target):
    """Write a score model's averaged weights as a checkpoint of the class-conditional `config`.

    Without a label the new model is the restored one. Returns its step.
    """
    unlabelled = config.copy_and_resolve_references()
    unlabelled.model.num_classes = None
    trained = load_score(unlabelled, source, torch.device("cpu"))
    torch.manual_seed(0)
    weights = models.create_model(config).state_dict() | trained.score.net.state_dict()
    step = trained.loaded.step or config.training.init_step
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        torch.save({"model": weights, "step": step}, file)
    return step


def class_seen(place, variant):
    """The share of samples in which the feature classifier sees the class asked for."""
    shares = []
    for label in range(CLASSES):
        paths = sorted(place.latents(label, variant).glob("*.npz"))
        logits = np.concatenate([load_npz(path, "logits")["logits"] for path in paths])
        shares.append((logits.argmax(1) == label).mean())
    return float(np.mean(shares))


def measure(workdir, config, drawn, cas, *own, scale=1):
    """Draw by class and measure: a dict of floats.

    Args:
        drawn, cas: flags of sampling and evaluation, and of CAS.
        own: flags of sampling that say which weights.
        scale: of the guidance, 1 in the configurations.
    """
    variant = f"_{SAMPLER}"
    if scale != 1:
        drawn, variant = [*drawn, f"--scale={scale}"], f"{variant}_scale{scale}"
    common.run("run_lib_sampling.py", config, workdir, "--mode=full", *drawn, *own)
    for mode in ("full", "class"):
        compare = ["--stat", "--latent", "--fidis", "--prdc", f"--mode={mode}"]
        common.run("run_lib_evaluation.py", config, workdir, *drawn, *compare)
    place = Workdir(workdir)
    recorded = place.recorded()
    classwise = common.sample_metrics(recorded, f"_class{variant}")
    samples = place.class_samples(0, variant).parent
    return {
        **common.sample_metrics(recorded, variant),
        **{f"CW {name}": value for name, value in classwise.items()},
        "CAS": accuracy(workdir, "samples", f"--samples={samples}", *cas),
        "class seen": class_seen(place, variant),
    }


def accuracy(workdir, name, *own):
    """The CAS that the command with these flags records as `name`."""
    common.run("run_lib_evaluation_cas.py", f"{CONFIGS}/cas.py", workdir, *own)
    return Workdir(workdir).recorded()[f"cas_{name}"]["accuracy"]


def study(root, seed, start, start_step):
    """Yields (row, numbers) of a seed; CFG begins with the checkpoint `start`."""
    FLAGS = flags.FLAGS
    place, restore = f"{root}/seed{seed}", f"--restore={FLAGS.restore}"
    data = common.part_of_fashion_mnist(cfg.get_config().data, "train", TRAIN_IMAGES)
    every = [f"--config.data.root={data}"]
    all_samples = f"--config.eval.num_samples_all={SAMPLES}"
    drawn = [*every, f"--config.eval.num_samples={SAMPLES}", all_samples]
    drawn += [f"--sampler={SAMPLER}", f"--config.sampling.steps={SAMPLER_STEPS}"]
    train = [*every, f"--config.seed={seed}", f"--config.training.batch_size={FLAGS.batch}"]
    cas = [*train, all_samples]

    for name, (folder, own) in CLASSIFIERS.items():
        workdir = f"{place}/{folder}"
        own = ["--model=classifier", restore, f"--config.training.n_iters={FLAGS.steps}", *own]
        common.run("main.py", f"{CONFIGS}/classifier.py", workdir, *train, *own)
        yield name, measure(workdir, f"{CONFIGS}/guided.py", drawn, cas, restore)
    own = [restore, f"--restore_classifier={Workdir(f'{place}/base').checkpoint()}"]
    values = measure(f"{place}/scale", f"{CONFIGS}/guided.py", drawn, cas, *own, scale=10)
    yield "CE, scale 10", values

    trained, steps = f"{place}/cfg", f"--config.training.n_iters={start_step + FLAGS.steps}"
    common.run("main.py", f"{CONFIGS}/cfg.py", trained, *train, f"--restore={start}", steps)
    for w in CFG_SCALES:
        own = f"--restore={Workdir(trained).checkpoint()}"
        values = measure(f"{trained}_w{w}", f"{CONFIGS}/cfg_guided.py", drawn, cas, own, scale=w)
        yield f"CFG, w = {w}", values
    yield "real training images", {"CAS": accuracy(f"{place}/base", "real", "--setup=real", *cas)}


def main():
    FLAGS = flags.FLAGS
    root = f"studies/dlsm_{require_positive(FLAGS.steps, '--steps')}_{TRAIN_IMAGES}"
    start = Workdir(root).root / "start.pth"
    start_step = with_labels(cfg.get_config(), FLAGS.restore, start)
    results = {}
    for seed in FLAGS.seeds:
        for name, values in study(root, seed, start, start_step):
            results.setdefault(name, []).append(values)
    common.print_seeds("samples", results, reference="CE")


if __name__ == "__main__":
    flags.DEFINE_string("restore", None, "The score model's checkpoint.", required=True)
    common.define_seeds([0, 1, 2])
    flags.DEFINE_integer("steps", 600, "Steps of each training.")
    flags.DEFINE_integer("batch", 32, "Batch size of each training.")
    cli.launch(main, lists=["seeds"])
