"""The variance of the two estimators of QC's asymmetry on a trained model, per noise level.

    python -m studies.estimators --config configs/demo/digits.py --workdir demo

At each time t: the means of std²·e over test images and sign vectors by either estimator e, the
variance of each over the sign vectors of one image (averaged over images), and their ratio, which
is the number of the paper's slices that one skew slice is worth.
"""

import torch
from absl import flags

import cli
import datasets
import domains
import sampling
import sde_lib
from models import jacobian
from sde_lib import perturb
from storage.trained import load_score
from storage.workdir import Workdir
from studies import common
from utils import get_device

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
IMAGES, VECTORS = 100, 32
COLUMNS = "t", "σ", "mean, paper", "mean, skew", "variance, paper", "variance, skew", "ratio"


def estimates(score, sde, x, t, noise):
    """std²·e (VECTORS, B) at images x and the time `t`, by the paper's and the skew estimator."""
    times = torch.full((len(x),), t, device=x.device)
    x_t, std = perturb(sde, x, times, noise.randn(x.shape))
    v = jacobian.rademacher(noise.randn((VECTORS, *x.shape)))
    with torch.no_grad():
        _, p = score.jvp(x_t, times, v)
    q = jacobian.vjp(score, x_t, times, v)
    return [std**2 * jacobian.ESTIMATORS[name](p, q) for name in ("paper", "skew")]


def main():
    FLAGS = flags.FLAGS
    config = FLAGS.config
    sde, device = sde_lib.from_config(config), get_device(config.device)
    score, _ = load_score(config, Workdir(FLAGS.workdir).checkpoint(), sde, device)
    images, _ = next(datasets.eval_batches(datasets.load(config.data, "test"), IMAGES))
    x = domains.from_config(config.data).to_model(images.to(device), train=False)
    rows = []
    for index, t in enumerate(LEVELS):
        noise = sampling.SeededNoise(device, "asymmetry", config.seed, index)
        paper, skew = estimates(score, sde, x, t, noise)
        _, std = sde.marginal_prob(torch.zeros(1, 1), torch.tensor([t]))
        variances = [float(e.var(0).mean()) for e in (paper, skew)]
        cells = [f"{float(e.mean()):.4g}" for e in (paper, skew)]
        cells += [f"{variance:.3g}" for variance in variances]
        rows.append([f"{t}", f"{float(std):.3f}", *cells, f"{variances[0] / variances[1]:.1f}"])
    common.print_table(COLUMNS, rows)


if __name__ == "__main__":
    cli.define_common_flags()
    cli.launch(main)
