"""Quality of samples against the number of evaluations, for every sampler.

    python -m benchmarks.samplers --config configs/demo/digits.py --workdir samplers \\
        --models U=demo --nfe 5 10 20 35 80 --seeds 3

Draws ``config.eval.num_samples`` digits from each model by each of `samplers.fast.SAMPLERS` in at
most so many evaluations, and then by predictor and corrector and the probability flow as they are
configured, for each seed. Prints a Markdown table and plots FID and the share recognised against
the number of evaluations. Run again, it goes on; see `quality`.
"""

from absl import flags
from matplotlib import ticker

import cli
import sampling
import sde_lib
from benchmarks import quality
from experiments import common
from samplers import fast
from storage.workdir import Workdir
from utils import lookup

REFERENCES = {"pc": "PC", "ode": "RK45"}  # method -> its name in tables
GREYS = {"PC": "black", "RK45": "grey"}
PLOTTED = "fid", "recognised"


def steps_within(method, nfe):
    """The most steps of a `Method` that take at most `nfe` evaluations; 0 where all take more."""
    return max((count for count in range(1, nfe + 1) if method.nfe(count) <= nfe), default=0)


def settings_of(config, names, budgets):
    """``config.sampling`` of each sampler, the references last, with its name.

    Raises:
        UserError: there is no sampler of such a name.
    """
    for name in names:
        method = lookup(fast.SAMPLERS, name, "--samplers")
        for count in dict.fromkeys(steps_within(method, nfe) for nfe in budgets):
            settings = config.sampling.copy_and_resolve_references()
            settings.method, settings.steps = name, count
            if count:
                yield name, settings
    for method, name in REFERENCES.items():
        settings = config.sampling.copy_and_resolve_references()
        settings.method = method
        yield name, settings


def measure(measurements, sde, model, name, chosen, seeds):
    """The numbers of each seed, of a model's samples by the sampler of ``config.sampling``."""
    sampler = sampling.from_config(chosen, sde)
    steps = f", {chosen.steps} steps" if name in fast.SAMPLERS else ""
    label, settings = f"{model.name}, {name}{steps}", sampling.settings(chosen)
    return [measurements(label, model, sampler, settings, seed) for seed in range(seeds)]


def print_results(results):
    """A Markdown table of ``results``, (model, sampler, numbers of each seed) each."""
    rows = []
    for model, name, each in results:
        nfe, _ = quality.mean_and_spread(each, "nfe")
        rows.append([model, name, f"{nfe:.0f}", *quality.cells(each)])
    common.print_table(["model", "sampler", "NFE", *quality.heads()], rows)


def draw_plot(place, results):
    """A row of panels for each model: a curve for each sampler, a dashed line for a reference."""
    models = list(dict.fromkeys(model for model, _, _ in results))
    figure, axes = common.figure_of(len(models), len(PLOTTED), side=4.5)
    for row, model in zip(axes, models):
        for panel, quantity in zip(row, PLOTTED):
            draw_panel(panel, [result[1:] for result in results if result[0] == model], quantity)
            panel.set_title(model, fontsize=10)
    axes[0][0].legend(fontsize=7)
    return common.save_figure(place, "quality_against_nfe", figure)


def draw_panel(panel, results, quantity):
    head, _, factor = quality.QUANTITIES[quantity]
    for name in dict.fromkeys(name for name, _ in results):
        points = [
            (quality.mean_and_spread(each, "nfe")[0], *quality.mean_and_spread(each, quantity))
            for other, each in results
            if other == name
        ]
        nfe, means, spreads = zip(*sorted(points))
        means, spreads = ([factor * value for value in values] for values in (means, spreads))
        if name in REFERENCES.values():
            panel.axhline(means[0], color=GREYS[name], linestyle="--", linewidth=1)
            panel.annotate(f"{name}, {nfe[0]:.0f}", (5, means[0]), fontsize=7, va="bottom")
        else:
            panel.errorbar(nfe, means, spreads, marker=".", linewidth=1, label=name)
    yscale = "log" if quantity == "fid" else "linear"
    panel.set(xlabel="NFE", ylabel=head, xscale="log", yscale=yscale)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.grid(alpha=0.3)


def main():
    FLAGS = flags.FLAGS
    config, sde = FLAGS.config, sde_lib.from_config(FLAGS.config)
    models = [quality.open_model(config, sde, text) for text in FLAGS.models]
    chosen = list(settings_of(config, FLAGS.samplers, sorted(FLAGS.nfe)))
    place = Workdir(FLAGS.workdir)
    place.create()
    measurements = quality.Measurements(config, place, quality.Judge(config))
    results = [
        (model.name, name, measure(measurements, sde, model, name, settings, FLAGS.seeds))
        for model in models
        for name, settings in chosen
    ]
    print_results(results)
    print(f"The figure is {draw_plot(place, results)}.")


if __name__ == "__main__":
    cli.define_common_flags()
    quality.define_flags()
    flags.DEFINE_multi_string("samplers", list(fast.SAMPLERS), "Names of fast samplers.")
    flags.DEFINE_multi_integer("nfe", [5, 10, 20, 35, 80, 200], "Most evaluations of a sample.")
    cli.launch(main, pairs=("models", "samplers", "nfe"))
