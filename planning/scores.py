"""The dry runs of run_lib_sampling.py and run_lib_evaluation.py: what models would be asked."""

import math
import pathlib
from collections.abc import Callable, Sequence

import ml_collections
import torch

import domains
import likelihood
import models
import sampling
import sde_lib
from configs.classes import describes_classifier, draws_by_class, number_of_classes
from metrics import encoding
from metrics.image_folders import png_folder
from models import compute, jacobian, memory
from models.scores import ClassifierFreeScore, EnergyScore, GuidedScore, Score
from planning.costs import Files, count_flops, count_parameters, print_plan, readable_flops
from samplers.rounds import share, split_rounds
from storage.workdir import Workdir
from utils import get_device, is_first, lookup, shares


def fresh_score(config: ml_collections.ConfigDict) -> tuple[Score | EnergyScore, torch.nn.Module]:
    """The score that ``config.model`` describes, of fresh weights, and the network behind it."""
    device, sde = get_device(config.device), sde_lib.from_config(config)
    network = compute.freeze(models.create_model(config), config.compute, device)
    return models.create_score(config, network, sde), network


def guided(
    config: ml_collections.ConfigDict, score: Score | EnergyScore
) -> tuple[ClassifierFreeScore | GuidedScore, int]:
    """A `score` with its guidance, and how many parameters that adds."""
    device, sde = get_device(config.device), sde_lib.from_config(config)
    label = torch.zeros(1, dtype=torch.long, device=device)
    if not describes_classifier(config):
        return ClassifierFreeScore(score, label), 0
    classifier = compute.freeze(models.create_classifier(config), config.compute, device)
    return GuidedScore(score, classifier, sde, label), count_parameters(classifier)


def costs_of(
    call: Callable[[torch.Tensor, torch.Tensor], object],
    config: ml_collections.ConfigDict,
    rows: int,
    what: str,
) -> tuple[dict[str, str], float]:
    """Facts about ``call(x, t)`` on `rows` made-up images: FLOPs of one and memory of all."""
    device, shape = get_device(config.device), domains.from_config(config.data).shape

    @torch.no_grad()
    def counted():
        call(torch.rand((rows, *shape), device=device), torch.rand(rows, device=device))

    kept, flops = memory.count(counted), count_flops(counted) / rows
    facts = {
        what: f"{readable_flops(flops)} for each of them",
        "memory": f"{memory.readable(kept.held + kept.peak)} on {device}: "
        f"{memory.readable(kept.held)} for weights, {memory.readable(kept.peak / rows)} for each "
        f"of {rows} at a time",
    }
    return facts, flops


def plan_samples(
    config: ml_collections.ConfigDict,
    workdir: str,
    divisions: Sequence[int],
    classes: Sequence[int] | None = None,
    png: bool = False,
) -> None:
    """Print what drawing would do; nothing is written, and no checkpoint is needed.

    Args:
        divisions: the divisions that would be drawn.
        classes: the classes; None: the samples have none.
        png: whether every sample would become a PNG file too.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    place, counts = Workdir(workdir), samples_by_folder(config, workdir, divisions, classes)
    evaluation, total = config.eval, sum(counts.values())
    sde, domain = sde_lib.from_config(config), domains.from_config(config.data)
    sampler = sampling.from_config(config.sampling, sde)
    score, network = fresh_score(config)
    parameters = count_parameters(network)
    if draws_by_class(config):
        score, more = guided(config, score)
        parameters += more
    rows = min(evaluation.microbatch, evaluation.batch_size)
    facts, flops = costs_of(score, config, rows, "an evaluation of the score")
    facts = {"parameters": f"{parameters:,}", **facts}
    method = f"{config.sampling.method} sampler"
    facts["samples"] = f"{total} {domain.noun} of shape {domain.shape}, {method}"
    if sampler.steps is None:
        facts["evaluations"] = "as the tolerances ask"
    else:
        nfe = evaluations(sampler)
        facts["evaluations"] = f"{nfe} for each sample"
        facts["all samples"] = readable_flops(nfe * flops * total)
    size = math.prod(domain.shape) * domain.dtype.itemsize
    files = [Files(place.log_file)]
    for folder, count in counts.items():
        rounds = math.ceil(count / evaluation.batch_size)
        files.append(Files(folder / "samples_*.npz", rounds, size * count // max(1, rounds)))
        files.append(Files(folder / "samples_*.png", rounds))
    if png and counts:
        files.append(Files(png_folder(next(iter(counts)).parent) / "*.png", total))
    if is_first():
        print_plan(config, facts, files)


def samples_by_folder(
    config: ml_collections.ConfigDict,
    workdir: str,
    divisions: Sequence[int],
    classes: Sequence[int] | None,
) -> dict[pathlib.Path, int]:
    """Each folder that `plan_samples` is about, with the number of its samples."""
    place, method, evaluation = Workdir(workdir), config.sampling.method, config.eval
    if classes is None:
        sizes = shares(evaluation.num_samples, evaluation.num_divisions)
        return {place.division(d, method): sizes[d] for d in divisions}
    sizes = shares(evaluation.num_samples, number_of_classes(config))
    counts = {}
    for label in classes:
        rounds = split_rounds(sizes[label], evaluation.batch_size)
        own = [each for d in divisions for each in share(rounds, evaluation.num_divisions, d)]
        counts[place.class_samples(label, method)] = sum(each.count for each in own)
    return {folder: count for folder, count in counts.items() if count}


def evaluations(sampler: Callable) -> int:
    """How often `sampler`, whose steps are fixed, asks the score for each sample."""
    _, nfe = sampler(lambda x, t: -x, torch.ones(1, 1))
    return nfe


def nll(
    config: ml_collections.ConfigDict, place: Workdir
) -> tuple[torch.nn.Module, dict[str, str], list[Files]]:
    """Facts and files of a likelihood."""
    score, network = fresh_score(config)
    sde = sde_lib.from_config(config)
    rows = min(config.eval.microbatch, config.eval.batch_size)

    def derivatives(x, t):
        field = likelihood.DensityField(sde, score, x[None])
        return field.derivatives(x, t, x[:, None])

    facts, _ = costs_of(derivatives, config, rows, "an evaluation of drift and divergence")
    facts["evaluations"] = "as the tolerances ask"
    return network, facts, [Files(place.nll(0).parent / "bpd_*.npz")]


def asym(
    config: ml_collections.ConfigDict, place: Workdir
) -> tuple[torch.nn.Module, dict[str, str], list[Files]]:
    """Facts and files of an asymmetry."""
    score, network = fresh_score(config)
    sde, evaluation = sde_lib.from_config(config), config.eval
    slices = config.loss.slices
    rows = max(1, min(evaluation.microbatch // (1 + slices), evaluation.batch_size))
    estimator = lookup(jacobian.ESTIMATORS, config.loss.estimator, "config.loss.estimator")

    def one_level(x, t):
        vectors = x.expand(slices, *x.shape)
        return likelihood.asymmetry(score, sde, x, t, x, vectors, estimator)

    facts, _ = costs_of(one_level, config, rows, "an image at a noise level")
    levels, repeats = evaluation.noise_levels, evaluation.total_repeat
    facts["noise levels"] = f"{levels}, {repeats} times: {levels * repeats} for each image"
    return network, facts, [Files(place.asym("*", "*")), Files(place.asym("*"), repeats)]


METRICS = {"nll": nll, "asym": asym}


# The flags of run_lib_evaluation.py that write features -> where.
FEATURES = {
    "encode": lambda config, place: place.generated_stat(config.sampling.method),
    "encode_dataset": lambda config, place: place.dataset_stat(config.sampling.method),
    "stat": lambda config, place: place.class_stat,
    "latent": lambda config, place: place.latents("*", config.sampling.method) / "samples_*.npz",
}


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str,
    metric: str | None = None,
    read: str | None = None,
    features: Sequence[str] = (),
    metrics: Sequence[str] = (),
    mode: str = "full",
    nfe: bool = False,
) -> None:
    """Print what an evaluation would do; nothing is read or written.

    Args:
        metric: the metric of a score to calculate; None: none.
        read: the metric of a score to average and record; None: none.
        features: the flags that ask for features.
        metrics: the names of the metrics of samples that would be taken.
        mode: "full", or "class" for every class's values, which are written as text.
        nfe: whether the samples' mean NFE would be recorded.
    """
    place = Workdir(workdir)
    facts, files = {}, [Files(FEATURES[name](config, place)) for name in features]
    if metric is not None:
        network, facts, own = METRICS[metric](config, place)
        facts = {"parameters": f"{count_parameters(network):,}", **facts}
        files += own
    if read == "asym":
        files.append(Files(place.asym_picture))
    if mode == "class":
        files += [Files(place.classwise(name, config.sampling.method)) for name in metrics]
    if metrics or features:
        facts["features"] = config.eval.features
    if features and config.eval.features == "classifier":
        cache = encoding.classifier_cache(config.data)
        facts["features"] += f", which is trained first unless {cache} stands"
        files.append(Files(cache))
    if metrics:
        facts["metrics"] = ", ".join(metrics)
    if metrics or nfe or read is not None:
        files.append(Files(place.metrics))
    if metrics or features or metric is not None:
        files.append(Files(place.log_file))
    if is_first():
        print_plan(config, facts, files)
