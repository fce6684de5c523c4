"""The variance of the two asymmetry estimators on a trained model, per noise level.

python -m benchmarks.estimator_variance --config configs/demo/digits.py --workdir demo

Prints a Markdown table. At each time t: the mean of std²·e over test images and sign vectors by
either estimator e, the variance of each over the sign vectors of one image (averaged over images),
and their ratio, which is the number of paper slices that one skew slice is worth.
"""

import torch
from absl import flags

import cli
import sampling
from metrics.nll_and_asym import TestRun
from models import jacobian
from sde_lib import perturb

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
IMAGES, VECTORS = 100, 32


def variances(run, t, noise):
    """Means (2,) and variances (2,) of the paper's and the skew estimator at the time `t`."""
    x = run.domain.to_model(run.images(0)[:IMAGES], train=False)
    times = torch.full((len(x),), t, device=run.device)
    x_t, std = perturb(run.sde, x, times, noise.randn(x.shape))
    v = jacobian.rademacher(noise.randn((VECTORS, *x.shape)))
    with torch.no_grad():
        p = run.score.jvp(x_t, times, v)
    q = jacobian.vjp(run.score, x_t, times, v)
    values = [std**2 * jacobian.ESTIMATORS[name](p, q) for name in ("paper", "skew")]
    return [float(e.mean()) for e in values], [float(e.var(0).mean()) for e in values]


def main():
    FLAGS = flags.FLAGS
    run = TestRun.open(FLAGS.config, FLAGS.workdir, use_ema=True)
    print("| t | σ | mean, paper | mean, skew | variance, paper | variance, skew | ratio |")
    print("|---|---|---|---|---|---|---|")
    for index, t in enumerate(LEVELS):
        noise = sampling.SeededNoise(run.device, "asymmetry", run.config.seed, index)
        (paper, skew), (paper_variance, skew_variance) = variances(run, t, noise)
        _, std = run.sde.marginal_prob(torch.zeros(1, 1), torch.tensor([t]))
        print(
            f"| {t} | {float(std):.3f} | {paper:.4g} | {skew:.4g} | {paper_variance:.3g} | "
            f"{skew_variance:.3g} | {paper_variance / skew_variance:.1f} |"
        )


if __name__ == "__main__":
    cli.define_common_flags()
    cli.launch(main)
