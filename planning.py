"""The dry runs: what a command would take, and whether what it needs is there.

PyTorch's fake tensors have shapes, types and a device, but no numbers: a call on them runs through
the same operations in seconds, whatever the size. Not counted are cuDNN's workspaces, a GPU's
context and the gaps of its allocator.
"""

import itertools
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ml_collections
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import datasets
import domains
import run_lib
import sampling
from configs import ranges
from metrics import encoding, feature_sets, nll_and_asym
from metrics.sample_sets import find_samples, parts_of
from models import jacobian, resampling
from run_lib_sampling import rounds_of
from storage.trained import load_for_sampling, load_score
from storage.workdir import Workdir
from utils import flatten, get_device, is_first, rank_and_size

# ---------------------------------------------------------------- counting


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
        formula = flop_registry.get(getattr(function, "_overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        real = [x for x in _tensors((args, kwargs)) if not isinstance(x, FakeTensor)]
        for storage in (x.untyped_storage() for x in real):
            if storage._cdata not in self.known:
                self.held += storage.nbytes()
                self.known[storage._cdata] = storage
        # What a real tensor is viewed through is the storage of its fake stand-in: nothing new.
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
    prefixes = iter(("", "k", "M", "G", "T", "P", "E"))
    prefix = next(prefixes)
    while number >= base and prefix != "E":
        number, prefix = number / base, next(prefixes)
    return f"{number:.3g} {prefix}{'i' if base == 1024 and prefix else ''}{unit}"


def parameters_of(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def print_plan(config: ml_collections.ConfigDict, facts: Mapping[str, str]) -> None:
    """Print a configuration and `facts` (name -> text)."""
    if not is_first():
        return
    print("Configuration")
    for name, value in sorted(flatten(config.to_dict()).items()):
        print(f"  config.{name} = {value!r}")
    print("Plan")
    for name, text in facts.items():
        print(f"  {name}: {text}")
    print("This was a dry run: nothing was done, nothing was written.")


# ---------------------------------------------------------------- the commands


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    restore: str | os.PathLike | None,
    make_job: Callable,
    typed: Collection[str] = (),
) -> None:
    """Print what `run_lib.train` would take with the same arguments.

    Raises:
        UserError: what it would raise before its first step, but that the data are not read.
    """
    job, state, _, notes = run_lib.prepare(config, Workdir(workdir), restore, make_job, typed)
    training = job.config.training
    _, processes = rank_and_size()
    images = training.batch_size // processes
    images = min(training.microbatch or images, images)
    flops, fixed, each = step_of(job, images)
    fixed_text, each_text = (readable(size, "B", 1024) for size in (fixed, each))
    facts = {
        "data": datasets.require_raw(job.config.data, "train"),
        "parameters": f"{parameters_of(job.model):,}",
        "steps": f"{state.step} to {training.n_iters}, batch {training.batch_size}",
        "start": " ".join(notes),
        "a step": readable(flops * training.batch_size, "FLOP"),
        "all steps": readable(
            flops * training.batch_size * max(0, training.n_iters - state.step), "FLOP"
        ),
        "memory": f"{readable(fixed + each * images, 'B', 1024)} for each process on {job.device}: "
        f"{fixed_text} for weights, gradients, averages and moments, {each_text} for each of "
        f"{images} {job.domain.noun}",
    }
    print_plan(job.config, facts)


def step_of(job: Any, images: int) -> tuple[float, float, float]:
    """What a training step of `images` at a time takes: FLOPs of an image, bytes, bytes an image.

    The bytes are those of weights, gradients, averages and moments, and what a step adds to them.
    """
    parameters = [p for p in job.model.parameters() if p.requires_grad]
    buffers = [buffer.clone() for buffer in job.model.buffers()]

    def gradient():
        x = torch.rand((images, *job.domain.shape), device=job.device)
        labels = torch.zeros(images, dtype=torch.long, device=job.device)
        loss, _ = job.objective(x, labels, job.objective.draw(x))
        torch.autograd.grad(loss, parameters, allow_unused=True)

    job.model.train()
    cost = cost_of(gradient)
    for buffer, before in zip(job.model.buffers(), buffers):  # counters did count
        buffer.copy_(before)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    # The averages and Adam's two moments; the gradients are in the peak.
    return cost.flops / images, cost.held + 3 * weights, cost.peak / images


def sample(
    config: ml_collections.ConfigDict,
    workdir: str,
    classes: Sequence[int] | None,
    division_idx: int | None,
) -> None:
    """Print what `run_lib_sampling.sample` would take with the same arguments.

    Raises:
        UserError: what it would raise before its first sample.
    """
    ranges.check(config)
    place, device = Workdir(workdir), get_device(config.device)
    drawn = load_for_sampling(config, place, device)
    config, score = drawn.config, drawn.trained.score
    sampler = sampling.from_config(config.sampling, drawn.trained.sde)
    every = rounds_of(config, parts_of(config, place), classes, division_idx)
    total = sum(each.count for each in every)
    if drawn.guidance is not None:
        label = torch.zeros(1, dtype=torch.long, device=device)
        score = drawn.guidance(labels=label, scale=config.sampling.scaling_factor)
    facts, flops = evaluation_of(score, config, device)
    facts |= {
        "weights": drawn.description,
        "parameters": f"{parameters_of(drawn.trained.score.net):,}",
        "samples": f"{total}, by the sampler {config.sampling.method}",
        "evaluations": "as the tolerances ask",
    }
    if sampler.steps is not None:
        _, nfe = sampler(lambda x, t: -x, torch.ones(1, 1))
        facts["evaluations"] = f"{nfe} for each sample"
        facts["all samples"] = readable(nfe * flops * total, "FLOP")
    print_plan(config, facts)


def evaluation_of(
    score: Callable, config: ml_collections.ConfigDict, device: torch.device
) -> tuple[dict[str, str], float]:
    """Facts about an evaluation of a `score` on a batch, and its FLOPs for one image."""
    domain = domains.from_config(config.data)
    rows = min(config.eval.microbatch, config.eval.batch_size)

    @torch.no_grad()
    def call():
        score(torch.rand((rows, *domain.shape), device=device), torch.rand(rows, device=device))

    cost = cost_of(call)
    held, each = (readable(size, "B", 1024) for size in (cost.held, cost.peak / rows))
    memory = (
        f"{held} for weights and {each} for each of {rows} {domain.noun} at a time, on {device}"
    )
    flops = cost.flops / rows
    return {"memory": memory, "an evaluation": readable(flops, "FLOP") + " for each"}, flops


def evaluate(
    config: ml_collections.ConfigDict,
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
    ranges.check(config)
    place, device, facts = Workdir(workdir), get_device(config.device), {}
    if "calculate" in asked:
        trained = load_score(config, place.checkpoint(config.eval.checkpoint_idx), device, ema)
        config = trained.config

        def products(x, t):
            return jacobian.value_and_vjp(trained.score, x, t, x[None])

        facts, _ = evaluation_of(products, config, device)
        facts["weights"] = str(trained.loaded)
        facts["parameters"] = f"{parameters_of(trained.score.net):,}"
        facts["test data"] = datasets.require_raw(config.data, "test")
    elif "read" in asked:
        path = place.nll(0, ema) if metric == "nll" else place.asym(0, ema=ema)
        nll_and_asym.open_result(path, nll_and_asym.command_for(metric, workdir, ema))
    encoded = {"encode", "encode_dataset", "stat", "latent"} & {*asked}
    measured = [name for name in asked if name not in {"calculate", "read", "nfe"} | encoded]
    if {"encode_dataset", "stat"} & encoded:
        facts["training data"] = datasets.require_raw(config.data, "train")
    if {"encode", "latent", "nfe"} & {*asked}:
        found = itertools.chain.from_iterable(find_samples(config, place))
        facts["samples"] = f"{sum(each.rows for each in found)}"
    if encoded:
        facts["features"] = encoding.require_extractor(config)
    elif measured:
        feature_sets.open_sets(config, workdir, dataset_stat)
    if measured:
        facts["metrics"] = ", ".join(measured)
    print_plan(config, facts)
