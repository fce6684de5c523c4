"""How much a classifier's likelihood score betters the score of its score model, per noise level.

python -m benchmarks.likelihood_scores --config configs/demo/digits_classifier.py --workdir NAME

At images x_t = x + σz of label y, with the learned score s and the classifier's likelihood score
g = ∇ₓ log p(y | x_t), r = s + z/σ is the denoising residual without the label and r + g with it.
Prints a Markdown table for training and for test images, means over them and DRAWS noises each:
    gain: 1 − ‖r + g‖²/‖r‖², what the label takes away of the residual; below 0, g does harm
    scale: a = −⟨r, g⟩/‖g‖², the factor of g at which the gain is largest
    best gain: the gain of a·g, the squared cosine between r and g
    CE, accuracy, confidence: of the classifier, the last being its mean largest probability
A gain is small where the label says little about x beside x_t. The scale is 1 for exact scores,
and below 1 for a classifier that is too sure of itself.
"""

import torch
from absl import flags

import cli
import datasets
import domains
import losses
import sampling
import sde_lib
from experiments.common import print_table
from models.scores import class_log_likelihood
from sde_lib import expand, perturb
from storage.trained import load_classifier, load_score
from storage.workdir import Workdir
from utils import get_device

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
IMAGES, DRAWS = 360, 8
COLUMNS = ["σ", "gain", "scale", "best gain", "CE", "accuracy", "confidence"]


@torch.no_grad()
def sums(objective, x, labels, t, z):
    """‖r‖², ⟨r, g⟩, ‖g‖², CE, right answers, confidences: sums over images x (B, C, H, W).

    Score, classifier and SDE are those of `objective`, a `losses.DLSM`.
    """
    times = torch.full((len(x),), t, device=x.device)
    x_t, std = perturb(objective.sde, x, times, z)
    r = objective.score(x_t, times) + z / expand(std, z)
    logits, g = objective.likelihood_score(x_t, std, labels)
    probabilities = logits.softmax(1)
    return torch.stack(
        [
            r.square().sum(),
            (r * g).sum(),
            g.square().sum(),
            -class_log_likelihood(logits, labels).sum(),
            (logits.argmax(1) == labels).sum(),
            probabilities.amax(1).sum(),
        ]
    ).double()


def row(objective, x, labels, t, noise):
    """The row of the table at time t, as text."""
    total = sum(sums(objective, x, labels, t, noise.randn(x.shape)) for _ in range(DRAWS))
    rr, rg, gg, *classifier = total.tolist()
    _, std = objective.sde.marginal_prob(torch.zeros(1, 1), torch.tensor([t]))
    gain, scale, best = -(2 * rg + gg) / rr, -rg / gg, rg**2 / (rr * gg)
    ce, right, confidence = (value / (DRAWS * len(x)) for value in classifier)
    cells = [f"{float(std):.3f}", f"{gain:.2%}", f"{scale:.2f}", f"{best:.2%}"]
    return [*cells, f"{ce:.3f}", f"{right:.1%}", f"{confidence:.1%}"]


def main():
    FLAGS = flags.FLAGS
    config = FLAGS.config
    sde, device = sde_lib.from_config(config), get_device(config.device)
    score, _ = load_score(config, config.model.score_restore_path, sde, device)
    classifier, _ = load_classifier(config, Workdir(FLAGS.workdir).checkpoint(), device)
    objective = losses.DLSM(classifier, score, sde, sde.sampling_eps)
    domain = domains.from_config(config.data)
    for name, split in zip(("training", "test"), datasets.load_both(config.data)):
        images, labels = next(datasets.eval_batches(split, IMAGES))
        x, labels = domain.to_model(images.to(device), train=False), labels.to(device)
        rows = []
        for index, t in enumerate(LEVELS):
            noise = sampling.SeededNoise(device, "likelihood scores", config.seed, index)
            rows.append(row(objective, x, labels, t, noise))
        print(f"\n{len(x)} {name} images\n")
        print_table(COLUMNS, rows)


if __name__ == "__main__":
    cli.define_common_flags()
    cli.launch(main)
