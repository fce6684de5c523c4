"""How much a label's likelihood score betters the score of its score model, per noise level.

    python -m studies.likelihood_scores --config CONFIG --workdir NAME [--images N] [--draws N]

CONFIG draws by class, as configs/demo/digits_guided.py by the workdir's classifier or
configs/demo/digits_cfg_guided.py by the workdir's class-conditional score. At images x_t = x + σz
of label y, with the learned score s and the likelihood score g that guidance adds at scale 1 (∇ₓ
log p(y | x_t) of a classifier, s(x, t, y) − s(x, t) without one), r = s + z/σ is the denoising
residual without the label and r + g with it. Prints a Markdown table for training and for test
images, means over the images and the noises of each:
    gain: 1 − ‖r + g‖²/‖r‖², what the label takes away of the residual; below 0, g does harm
    scale: a = −⟨r, g⟩/‖g‖², the factor of g at which the gain is largest
    best gain: the gain of a·g, the squared cosine between r and g
A gain is small where the label says little about x beside x_t. The scale is 1 for exact scores,
and below 1 for guidance that is too sure of itself.
"""

import torch
from absl import flags

import cli
import datasets
import domains
import sampling
from models.scores import ClassifierFreeScore, GuidedScore
from models.trained import load_sampling_model
from sde_lib import SDE, expand, perturb
from storage.workdir import Workdir
from studies import common
from utils import get_device, require_positive

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
COLUMNS = ["σ", "gain", "scale", "best gain"]


@torch.no_grad()
def sums(
    guided: GuidedScore | ClassifierFreeScore, sde: SDE, x: torch.Tensor, t: float, z: torch.Tensor
) -> torch.Tensor:
    """‖r‖², ⟨r, g⟩, ‖g‖² (3,): sums over images x (B, C, H, W) at the time t."""
    times = torch.full((len(x),), t, device=x.device)
    x_t, std = perturb(sde, x, times, z)
    s = guided.unguided(x_t, times)
    r, g = s + z / expand(std, z), guided(x_t, times) - s
    return torch.stack([r.square().sum(), (r * g).sum(), g.square().sum()]).double()


def row(sde: SDE, t: float, of_score: torch.Tensor) -> list[str]:
    """The cells of `COLUMNS` at the time `t`, from the total of `sums`."""
    rr, rg, gg = of_score.tolist()
    _, std = sde.marginal_prob(torch.zeros(1, 1), torch.tensor([t]))
    gain, scale, best = -(2 * rg + gg) / rr, -rg / gg, rg**2 / (rr * gg)
    return [f"{float(std):.3f}", f"{gain:.2%}", f"{scale:.2f}", f"{best:.2%}"]


def main():
    FLAGS = flags.FLAGS
    config = FLAGS.config
    images_wanted = require_positive(FLAGS.images, "--images")
    draws = require_positive(FLAGS.draws, "--draws")
    device = get_device(config.device)
    drawn = load_sampling_model(config, Workdir(FLAGS.workdir), device)
    config, sde = drawn.config, drawn.trained.sde
    domain = domains.from_config(config.data)
    for name, split in zip(("training", "test"), datasets.load_both(config.data)):
        images, labels = next(datasets.eval_batches(split, images_wanted))
        x = domain.to_model(images.to(device), train=False)
        guided = drawn.guidance(labels=labels.to(device))
        rows = []
        for index, t in enumerate(LEVELS):
            noise = sampling.SeededNoise(device, "likelihood scores", config.seed, index)
            draw = [noise.randn(x.shape) for _ in range(draws)]
            rows.append(row(sde, t, sum(sums(guided, sde, x, t, z) for z in draw)))
        print(f"\n{len(x)} {name} images\n")
        common.print_table(COLUMNS, rows)


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_integer("images", 360, "Images of each split, the first ones.")
    flags.DEFINE_integer("draws", 8, "Noises of each image at each noise level.")
    cli.launch(main)
