"""The dry runs: parameters, FLOPs and peak memory of a command, and whether its inputs exist."""

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import domains
import run_lib
import sampling
from metrics import encoding, feature_sets
from metrics.sample_sets import find_samples
from models import jacobian
from models.trained import SamplingModel, load_score, score_path
from readers.common import MissingSplit
from storage.checkpoints import TrainState
from storage.settings import describes_classifier
from storage.workdir import Workdir
from training import resuming
from training.cost import cost_of, step_of, weights_of
from training.job import MakeJob
from utils import flatten, get_device, is_first, lookup, rank_and_size


def in_bytes(number: float) -> str:
    return tqdm.format_sizeof(number, "iB", 1024)


def print_plan(config: ConfigDict, facts: Mapping[str, str]) -> None:
    """Print a configuration and `facts` (name -> text)."""
    if is_first():
        fields = sorted(flatten(config.to_dict()).items())
        print("Configuration", *(f"config.{n} = {v!r}" for n, v in fields), sep="\n  ")
        print("Plan", *(f"{name}: {text}" for name, text in facts.items()), sep="\n  ")
        print("This was a dry run: nothing was done, nothing was written.")


def train(
    config: ConfigDict,
    workdir: str,
    restore: str | os.PathLike | None,
    make_job: MakeJob,
    typed: Collection[str] = (),
) -> None:
    """Print the cost of `run_lib.train`, with the same arguments and errors."""
    job, state, start, notes = run_lib.prepare(config, Workdir(workdir), restore, make_job, typed)
    training = job.config.training
    images = training.batch_size // rank_and_size()[1]
    images = min(images, training.microbatch or images)
    flops, fixed, each = step_of(job, images)
    step = flops * training.batch_size
    require_data(job.config, state, start)
    facts = {
        "parameters": f"{sum(p.numel() for p in job.model.parameters()):,}",
        "steps": f"{state.step} to {training.n_iters}, batch {training.batch_size}",
        "start": " ".join(notes),
        "data": datasets.describe(job.config.data, "train"),
        "a step": tqdm.format_sizeof(step, "FLOP"),
        "in all": tqdm.format_sizeof(step * max(training.n_iters - state.step, 0), "FLOP"),
        "memory": f"{in_bytes(fixed)} for weights, averages and moments, and {in_bytes(each)} for "
        f"each of {images} {job.domain.noun}: {in_bytes(fixed + each * images)}",
    }
    print_plan(job.config, facts)


def require_data(config: ConfigDict, state: TrainState, start: resuming.Start) -> None:
    """Raise the data errors of a training: missing files, wrong classes, or other data."""
    by_classifier = describes_classifier(config)
    field = "classifier.classes" if by_classifier else "model.num_classes"
    classes = config.classifier.classes if by_classifier else config.model.get("num_classes")
    datasets.require_classes(config.data, classes, f"config.{field}")
    with contextlib.suppress(MissingSplit):
        datasets.source(config.data, "test")
    if start.path is not None and datasets.open_cached(config.data, "train") is not None:
        identity = datasets.load(config.data, "train").identity
        datasets.require_same_data(identity, state.data, start.path)


def evaluation_of(
    score: Callable, network: torch.nn.Module, config: ConfigDict, rows: int
) -> tuple[dict[str, str], float]:
    """Facts about `score`, a function of x (rows, …) and t that calls `network`; FLOPs for each."""
    domain, device = domains.from_config(config.data), get_device(config.device)

    @torch.no_grad()
    def call():
        score(torch.rand((rows, *domain.shape), device=device), torch.rand(rows, device=device))

    cost = cost_of(call)
    facts = {
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        "memory": f"{in_bytes(weights_of(network))} for weights and {in_bytes(cost.peak / rows)} "
        f"for each of {rows} {domain.noun} at a time",
        "an evaluation": tqdm.format_sizeof(cost.flops / rows, "FLOP for each"),
    }
    return facts, cost.flops / rows


def rows_of(config: ConfigDict) -> int:
    """The number of images that the network takes at a time."""
    return min(config.eval.microbatch, config.eval.batch_size)


def sample(model: SamplingModel, sampler: sampling.Sampler, samples: str, count: int) -> None:
    """Print the cost of drawing `count` missing samples; the text `samples` describes all."""
    config, score = model.config, model.trained.score
    if model.guidance is not None:
        label = torch.zeros(1, dtype=torch.long, device=get_device(config.device))
        score = model.guidance(labels=label, scale=config.sampling.scaling_factor)
    facts, flops = evaluation_of(score, model.trained.score.net, config, rows_of(config))
    facts["weights"] = model.description
    facts["samples"] = samples
    if sampler.steps is not None:
        nfe = evaluations(sampler)
        total = tqdm.format_sizeof(flops * nfe * count, "FLOP")
        facts["in all"] = f"{nfe} evaluations for each, {total}"
    print_plan(config, facts)


def evaluations(sampler: sampling.Sampler) -> int:
    """The NFE of a sampler of fixed steps, counted on one pixel with a dummy score."""

    def score(x, t):
        return -x

    score.unguided = score
    return sampler(score, torch.ones(1, 1, 1, 1))[1]


def evaluate(
    config: ConfigDict,
    workdir: str,
    asked: Sequence[str],
    metric: str | None,
    ema: bool,
    dataset_stat: str | None,
) -> None:
    """Print the cost of an evaluation with the flags `asked`; raises the same errors."""
    place, asked, facts = Workdir(workdir), {*asked}, {"asked for": ", ".join(asked)}
    if "calculate" in asked:
        facts |= calculation(config, place, metric, ema)
    encodes_real, encodes_samples = {"encode_dataset", "stat"} & asked, {"encode", "latent"} & asked
    if encodes_real:
        facts["real images"] = datasets.describe(config.data, config.eval.real_split)
    if encodes_samples or "nfe" in asked:
        find_samples(config, place)
    if encodes_real or encodes_samples:
        facts["features"] = f"{config.eval.features}, {encoding.describe_extractor(config)}"
    elif asked - {"calculate", "read", "nfe"}:
        feature_sets.open_sets(config, workdir, dataset_stat)
    print_plan(config, facts)


def calculation(config: ConfigDict, place: Workdir, metric: str, ema: bool) -> dict[str, str]:
    """Facts about the calculation of a likelihood or an asymmetry; raises the same errors."""
    trained = load_score(config, score_path(config, place), get_device(config.device), ema)
    config, rows, calls = trained.config, rows_of(config), 1

    def products(x, t):
        return jacobian.value_and_vjp(trained.score, x, t, x[None])

    if metric == "asym":
        estimator = lookup(jacobian.ESTIMATORS, config.loss.estimator, "config.loss.estimator")
        vectors, calls = config.loss.slices, config.eval.noise_levels * config.eval.total_repeat
        rows = max(1, rows // (1 + vectors))

        def products(x, t):
            v = x.expand(vectors, *x.shape)
            return jacobian.measure_asymmetry(trained.score, x, t, v, estimator)

    facts, flops = evaluation_of(products, trained.score.net, config, rows)
    facts["weights"] = str(trained.loaded)
    facts["data"] = datasets.describe(config.data, "test")
    cached = datasets.open_cached(config.data, "test")
    if cached is not None:
        count = len(datasets.evenly(cached, config.eval.num_images))
        words = f"an evaluation of all {count}" if metric == "nll" else f"in all, of {count}"
        facts[words] = tqdm.format_sizeof(flops * count * calls, "FLOP")
    return facts
