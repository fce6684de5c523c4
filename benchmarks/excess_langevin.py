"""What repeated noising and denoising does to samples, by how conservative the model is.

    python -m benchmarks.excess_langevin --config configs/demo/digits_qc.py --workdir excess \\
        --models U=demo_u "QC paper=demo_qc_paper" "QC skew=demo_qc_skew"

Adding noise and removing it leaves p(x; σ) as it is, if what is removed is the gradient of a
log-density; Karras et al. (2022, section 4) see images degrade and suspect that the denoiser's
field is not conservative. Here Heun's sampler goes down to a noise level σ, K rounds add noise up
to √2·σ (their largest γ) and take one step of Heun's back, and Heun's sampler ends (restart, Xu et
al. 2023, with one step). Beside it, their stochastic sampler with more and more S_churn at every
noise level. The row `exact` is the denoiser of the training images themselves, whose field is
conservative: what a step of this size does by itself.

Prints Markdown tables and plots quality against K and S_churn. Run again, it goes on.
"""

import dataclasses
import functools
import math

import torch
from absl import flags

import cli
import datasets
import domains
import sde_lib
from benchmarks import quality
from experiments import common
from samplers import fast, grids
from samplers.stochastic import RestartInterval, churn
from sde_lib import expand
from storage.workdir import Workdir
from utils import get_device

PLOTTED = "fid", "precision", "recall", "recognised"


@dataclasses.dataclass(frozen=True)
class TrainingScore:
    """∇ₓ log of the mean of N(x_i, σ²) over data x_i (N, D): conservative and exact (VE)."""

    data: torch.Tensor
    sde: sde_lib.SDE

    def __call__(self, x, t):
        _, sigma = self.sde.marginal_prob(x, t)
        y, variance = x.flatten(1), expand(sigma**2, x).flatten(1)
        weights = torch.softmax(-torch.cdist(y, self.data).square() / (2 * variance), dim=1)
        return ((weights @ self.data - y) / variance).reshape(x.shape)


def exact_model(config, sde):
    """The `Model` that knows the training images by heart."""
    domain, device = domains.from_config(config.data), get_device(config.device)
    images = torch.tensor(datasets.load(config.data, "train").images, device=device)
    data = domain.to_model(images, train=False).flatten(1)
    return quality.Model("exact", TrainingScore(data, sde), "training images")


def excess(sde, steps, sigma, rounds):
    """Heun's sampler of so many `steps`, with K `rounds` of noise and back.

    A round goes from σ, the grid's level nearest to `sigma`, up to √2·σ.
    """
    grid = grids.of_sde(sde, steps)
    level = min(grid, key=lambda each: abs(each - sigma))
    interval = RestartInterval(level, math.sqrt(2) * level, steps=1, repeats=rounds)
    return fast.FastSampler(fast.restarted(fast.HEUN, interval), sde, grid)


def churned(sde, steps, s_churn):
    """Karras et al.'s stochastic sampler, S_noise 1, at all noise levels but the first ones.

    Above σ(T)/√2 the model would be asked for levels that it does not know.
    """
    top = sde.noise_level(sde.T) / math.sqrt(2)
    function = functools.partial(churn, s_churn=s_churn, s_tmin=0.0, s_tmax=top, s_noise=1.0)
    method = dataclasses.replace(fast.SAMPLERS["churn"], function=function)
    return fast.FastSampler(method, sde, grids.of_sde(sde, steps))


def all_series(sde, steps, sigmas, rounds, churns):
    """Yields each series' name, what its axis is called, and its (value, sampler) points.

    The excess rounds go on top of so many `steps`; churn is spread over four times as many, because
    S_churn saturates at √2 − 1 times their number.
    """
    for sigma in sigmas:
        points = [(count, excess(sde, steps, sigma, count)) for count in rounds]
        yield f"σ = {sigma:g}", "excess rounds K", points
    yield "churn", "S_churn", [(amount, churned(sde, 4 * steps, amount)) for amount in churns]


def measure(measurements, models, series, seeds):
    """The numbers of each seed of a series: {model's name: {value: dicts}}."""
    name, axis, points = series
    results = {}
    for model in models:
        results[model.name] = {}
        for value, sampler in points:
            label = f"{model.name}, {name}, {axis} {value:g}"
            settings = {"series": name, "value": value, "grid": sampler.sigmas}
            results[model.name][value] = [
                measurements(label, model, sampler, settings, seed) for seed in range(seeds)
            ]
    return results


def print_results(name, axis, results):
    print(f"\n{name}\n")
    rows = [
        [model, f"{value:g}", f"{each[0]['nfe']:.0f}", *quality.cells(each)]
        for model, values in results.items()
        for value, each in values.items()
    ]
    common.print_table(["model", axis, "NFE", *quality.heads()], rows)


def draw_plot(place, every):
    """A row of panels for each series, a curve for each model."""
    figure, axes = common.figure_of(len(every), len(PLOTTED))
    for row, ((name, axis, _), results) in zip(axes, every):
        for panel, quantity in zip(row, PLOTTED):
            head, _, factor = quality.QUANTITIES[quantity]
            for model, values in results.items():
                points = [quality.mean_and_spread(each, quantity) for each in values.values()]
                means, spreads = ([factor * v for v in part] for part in zip(*points))
                panel.errorbar(list(values), means, spreads, marker=".", linewidth=1, label=model)
            panel.set(xlabel=axis, ylabel=head, xscale="symlog")
            panel.set_title(name, fontsize=9)
            panel.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    return common.save_figure(place, "excess_langevin", figure)


def main():
    FLAGS = flags.FLAGS
    config, sde = FLAGS.config, sde_lib.from_config(FLAGS.config)
    models = [quality.open_model(config, sde, text) for text in FLAGS.models]
    models.append(exact_model(config, sde))
    place = Workdir(FLAGS.workdir)
    place.create()
    measurements = quality.Measurements(config, place, quality.Judge(config))
    chosen = (sorted(values) for values in (FLAGS.sigmas, FLAGS.rounds, FLAGS.s_churn))
    every = [
        (series, measure(measurements, models, series, FLAGS.seeds))
        for series in all_series(sde, config.sampling.steps, *chosen)
    ]
    for (name, axis, _), results in every:
        print_results(name, axis, results)
    print(f"The figure is {draw_plot(place, every)}.")


if __name__ == "__main__":
    cli.define_common_flags()
    quality.define_flags()
    flags.DEFINE_multi_float("sigmas", [0.15, 0.6], "Noise levels of the excess rounds.")
    flags.DEFINE_multi_integer("rounds", [0, 10, 30, 100], "Numbers K of excess rounds.")
    flags.DEFINE_multi_float("s_churn", [0, 5, 10, 20], "Amounts of churn.")
    cli.launch(main, pairs=("models", "sigmas", "rounds", "s_churn"))
