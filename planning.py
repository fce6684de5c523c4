"""The dry runs: parameters, FLOPs and peak memory of a command, and whether its inputs exist.

A call on PyTorch's fake tensors, which have no numbers, runs through the same operations in
seconds, whatever the size. Not counted are cuDNN's workspaces, a GPU's context and the gaps of its
allocator.
"""

import math
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from ml_collections import ConfigDict
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import datasets
import domains
import run_lib
import run_lib_likelihood
import sampling
from metrics import encoding, feature_sets
from metrics.sample_sets import find_samples
from models import jacobian, resampling
from models.trained import load_sampling_model, load_score
from storage import settings
from storage.workdir import Workdir
from training.job import Job, MakeJob
from utils import flatten, get_device, is_first, rank_and_size


class Cost(TorchDispatchMode):
    """Counts a call on fake tensors.

    Attributes:
        flops: by PyTorch's formulas, of convolutions, matrix products and attention.
        held: bytes of the real tensors that the call uses.
        peak: most bytes of the tensors that it makes, at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.held = self.now = self.peak = 0
        self.known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.prim.device.default:  # asked often, and nothing is made
            return args[0].fake_device
        result = function(*args, **kwargs)
        if formula := flop_registry.get(getattr(function, "_overloadpacket", None)):
            self.flops += formula(*args, **kwargs, out_val=result)
        real = [x for x in _tensors((args, kwargs)) if not isinstance(x, FakeTensor)]
        for storage in (x.untyped_storage() for x in real):
            if storage._cdata not in self.known:
                self.held += storage.nbytes()
                self.known[storage._cdata] = storage
        # The result of a view of a real tensor is no new memory, though its fake storage is new.
        view = real and any(value.alias_info for value in function._schema.returns)
        for storage in (x.untyped_storage() for x in _tensors(result)):
            self._follow(storage, 0 if view else storage.nbytes())
        return result

    def _follow(self, storage, size):
        key = storage._cdata
        if key not in self.known:
            self.now += size
            self.peak = max(self.peak, self.now)
            self.known[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key, size):
        self.now -= size
        del self.known[key]


def _tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def cost_of(call: Callable[[], object]) -> Cost:
    """The `Cost` of ``call()``, whose new tensors are fake; real ones are read as fake ones."""
    try:
        # Compiled code would be compiled for fake tensors.
        with (
            torch.compiler.set_stance("force_eager"),
            FakeTensorMode(allow_non_fake_inputs=True),
            Cost() as cost,
        ):
            call()
    finally:
        resampling.fir_matrix.cache_clear()  # it may have kept fake ones
    return cost


def readable(number: float, unit: str, base: int = 1000) -> str:
    """A number with a prefix: ``62.2 TFLOP``, ``42.5 GiB``."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = min(int(math.log(number, base)), len(prefixes) - 1) if number > 1 else 0
    binary = "i" if base == 1024 and power else ""
    return f"{number / base**power:.3g} {prefixes[power]}{binary}{unit}"


def in_bytes(number: float) -> str:
    return readable(number, "B", 1024)


def parameters_of(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


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
    """Print what `run_lib.train` would take with the same arguments.

    Raises:
        UserError: what it would raise before its first step, but that the data are not read.
    """
    job, state, _, notes = run_lib.prepare(config, Workdir(workdir), restore, make_job, typed)
    training = job.config.training
    _, processes = rank_and_size()
    share = training.batch_size // processes
    images = min(training.microbatch or share, share)
    flops, fixed, each = step_of(job, images)
    whole = flops * training.batch_size
    facts = {
        "data": datasets.require_raw(job.config.data, "train"),
        "parameters": parameters_of(job.model),
        "steps": f"{state.step} to {training.n_iters}, batch {training.batch_size}",
        "start": " ".join(notes),
        "a step": readable(whole, "FLOP"),
        "all steps": readable(whole * max(0, training.n_iters - state.step), "FLOP"),
        "memory": f"{in_bytes(fixed + each * images)} for each process on {job.device}: "
        f"{in_bytes(fixed)} for weights, gradients, averages and moments, {in_bytes(each)} for "
        f"each of {images} {job.domain.noun}",
    }
    print_plan(job.config, facts)


def step_of(job: Job, images: int) -> tuple[float, float, float]:
    """What a training step of `images` at a time takes: FLOPs of an image, bytes, bytes an image.

    The bytes are those of weights, gradients, averages and moments, and what a step adds to them.
    """
    parameters = [p for p in job.model.parameters() if p.requires_grad]

    def gradient():
        x = torch.rand((images, *job.domain.shape), device=job.device)
        labels = torch.zeros(images, dtype=torch.long, device=job.device)
        loss, _ = job.objective(x, labels, job.objective.draw(x))
        torch.autograd.grad(loss, parameters, allow_unused=True)

    job.model.train()
    cost = cost_of(gradient)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    # The averages and Adam's two moments; the gradients are in the peak.
    return cost.flops / images, cost.held + 3 * weights, cost.peak / images


def evaluation_of(
    score: Callable, config: ConfigDict, device: torch.device
) -> tuple[dict[str, str], float]:
    """Facts about an evaluation of a `score` on a batch, and its FLOPs for one image."""
    domain = domains.from_config(config.data)
    rows = min(config.eval.microbatch, config.eval.batch_size)

    @torch.no_grad()
    def call():
        score(torch.rand((rows, *domain.shape), device=device), torch.rand(rows, device=device))

    cost = cost_of(call)
    facts = {
        "memory": f"{in_bytes(cost.held)} for weights and {in_bytes(cost.peak / rows)} for each "
        f"of {rows} {domain.noun} at a time, on {device}",
        "an evaluation": f"{readable(cost.flops / rows, 'FLOP')} for each",
    }
    return facts, cost.flops / rows


class Counted:
    """A score, guided or not, that costs nothing: for a sampler to count its evaluations."""

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -x

    unguided = __call__


def sample(config: ConfigDict, workdir: str, total: int) -> None:
    """Print what `run_lib_sampling.sample` would take for `total` samples.

    Raises:
        UserError: what it would raise before its first sample.
    """
    settings.check(config)
    device = get_device(config.device)
    drawn = load_sampling_model(config, Workdir(workdir), device)
    config, score = drawn.config, drawn.trained.score
    sampler = sampling.from_config(config.sampling, drawn.trained.sde)
    facts = {"classes": ", ".join(f"{i} {name}" for i, name in enumerate(drawn.class_names))}
    facts = facts if drawn.guidance is not None else {}
    if drawn.guidance is not None:
        label = torch.zeros(1, dtype=torch.long, device=device)
        score = drawn.guidance(labels=label, scale=config.sampling.scaling_factor)
    cost, flops = evaluation_of(score, config, device)
    facts |= cost
    facts["weights"] = drawn.description
    facts["parameters"] = parameters_of(drawn.trained.score.net)
    facts["samples"] = f"{total}, by the sampler {config.sampling.method}"
    if sampler.steps is not None:
        _, nfe = sampler(Counted(), torch.ones(1, 1))
        facts["evaluations"] = f"{nfe} for each sample"
        facts["all samples"] = readable(nfe * flops * total, "FLOP")
    print_plan(config, facts)


def evaluate(
    config: ConfigDict,
    workdir: str,
    asked: Sequence[str],
    metric: str | None,
    ema: bool = False,
    dataset_stat: str | None = None,
) -> None:
    """Print what an evaluation would take, by the flags that are `asked` for.

    Raises:
        UserError: a checkpoint, samples, features or data are missing or do not fit.
    """
    settings.check(config)
    place, device = Workdir(workdir), get_device(config.device)
    facts = {"asked for": ", ".join(asked)}
    if "calculate" in asked:
        trained = load_score(config, place.checkpoint(config.eval.checkpoint_idx), device, ema)
        config = trained.config

        def products(x, t):
            return jacobian.value_and_vjp(trained.score, x, t, x[None])

        facts |= evaluation_of(products, config, device)[0]
        facts["weights"] = str(trained.loaded)
        facts["parameters"] = parameters_of(trained.score.net)
        facts["test data"] = datasets.require_raw(config.data, "test")
    elif "read" in asked:
        run_lib_likelihood.read_files(workdir, metric, ema, "*.npz")
    if {"encode_dataset", "stat"} & {*asked}:
        facts["training data"] = datasets.require_raw(config.data, "train")
    if {"encode", "latent", "nfe"} & {*asked}:
        rows = [each.rows for part in find_samples(config, place) for each in part]
        facts["samples"] = str(sum(rows))
    encoded = {"encode", "encode_dataset", "stat", "latent"} & {*asked}
    measured = {*asked} - {"calculate", "read", "nfe"} - encoded
    if encoded:
        encoding.require_extractor(config)
        facts["features"] = config.eval.features
    if measured and not {"encode", "latent"} & encoded:
        feature_sets.open_generated(config, workdir)
    if measured and not {"encode_dataset", "stat"} & encoded:
        feature_sets.open_real(config, workdir, dataset_stat)
    print_plan(config, facts)
