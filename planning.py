"""The dry runs: parameters, FLOPs and peak memory of a command, and whether its inputs exist."""

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
from metrics.sample_sets import Part, describe, find_samples
from models import jacobian
from models.trained import load_sampling_model, load_score, trained_weights
from samplers.rounds import Round
from storage.workdir import Workdir
from training.cost import cost_of, step_of, weights_of
from training.job import MakeJob
from utils import flatten, get_device, is_first, rank_and_size


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
    """Print what `run_lib.train` would take; takes its arguments and raises as it does."""
    job, state, _, notes = run_lib.prepare(config, Workdir(workdir), restore, make_job, typed)
    training = job.config.training
    images = training.microbatch or training.batch_size // rank_and_size()[1]
    flops, fixed, each = step_of(job, images)
    step = flops * training.batch_size
    datasets.source(job.config.data, "train")
    facts = {
        "parameters": f"{sum(p.numel() for p in job.model.parameters()):,}",
        "steps": f"{state.step} to {training.n_iters}, batch {training.batch_size}",
        "start": " ".join(notes),
        "a step": tqdm.format_sizeof(step, "FLOP"),
        "in all": tqdm.format_sizeof(step * max(training.n_iters - state.step, 0), "FLOP"),
        "memory": f"{in_bytes(fixed)} for weights, averages and moments, and {in_bytes(each)} for "
        f"each of {images} {job.domain.noun}: {in_bytes(fixed + each * images)}",
    }
    print_plan(job.config, facts)


def evaluation_of(score: Callable, network: torch.nn.Module, config: ConfigDict) -> dict[str, str]:
    """Facts about an evaluation of a `score`, a function of x and t that calls `network`."""
    domain, device = domains.from_config(config.data), get_device(config.device)
    rows = min(config.eval.microbatch, config.eval.batch_size)

    @torch.no_grad()
    def call():
        score(torch.rand((rows, *domain.shape), device=device), torch.rand(rows, device=device))

    cost = cost_of(call)
    return {
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        "memory": f"{in_bytes(weights_of(network))} for weights and {in_bytes(cost.peak / rows)} "
        f"for each of {rows} {domain.noun} at a time",
        "an evaluation": tqdm.format_sizeof(cost.flops / rows, "FLOP for each"),
    }


def sample(
    config: ConfigDict, workdir: str, parts: Sequence[Part], rounds: Sequence[Round]
) -> None:
    """Print what `run_lib_sampling.sample` would take for `rounds`; raises as it does."""
    drawn = load_sampling_model(config, Workdir(workdir), get_device(config.device))
    config, score = drawn.config, drawn.trained.score
    sampling.from_config(config.sampling, drawn.trained.sde)
    if drawn.guidance is not None:
        label = torch.zeros(1, dtype=torch.long, device=get_device(config.device))
        score = drawn.guidance(labels=label, scale=config.sampling.scaling_factor)
    facts = evaluation_of(score, drawn.trained.score.net, config)
    facts["weights"] = drawn.description
    names = describe(parts, [each.part for each in rounds], drawn.origin.get("classes", ()))
    total = sum(each.count for each in rounds)
    facts["samples"] = f"{total}, {names}, by the sampler {config.sampling.method}"
    print_plan(config, facts)


def evaluate(
    config: ConfigDict, workdir: str, asked: Sequence[str], ema: bool, dataset_stat: str | None
) -> None:
    """Print what an evaluation would take by the flags that are `asked` for; raises as it does."""
    place, asked, facts = Workdir(workdir), {*asked}, {"asked for": ", ".join(asked)}
    if "calculate" in asked:
        path = trained_weights(config, place)
        trained = load_score(config, path, get_device(config.device), ema)

        def products(x, t):
            return jacobian.value_and_vjp(trained.score, x, t, x[None])

        facts |= evaluation_of(products, trained.score.net, trained.config)
        facts["weights"] = str(trained.loaded)
        datasets.source(trained.config.data, "test")
    encodes_real, encodes_samples = {"encode_dataset", "stat"} & asked, {"encode", "latent"} & asked
    if encodes_real:
        datasets.source(config.data, config.eval.real_split)
    if encodes_samples or "nfe" in asked:
        find_samples(config, place)
    if encodes_real or encodes_samples:
        encoding.require_extractor(config)
        facts["features"] = config.eval.features
    elif asked - {"calculate", "read", "nfe"}:
        feature_sets.open_sets(config, workdir, dataset_stat)
    print_plan(config, facts)
