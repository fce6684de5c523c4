"""Memory by fake tensors: against sums by hand and PyTorch's own record, and harmless."""

import pytest
import tiny
import torch
from torch._dynamo.utils import counters

import run_lib
from models import memory, resampling
from storage.workdir import Workdir
from training.score import ScoreTraining

CPU = torch.device("cpu")


def test_what_lives_at_once_is_counted():
    """Results that are gone are not, and neither are views; what was there before is `held`."""
    weight = torch.ones(1000)

    def call():
        a = torch.zeros(1000)
        b = a[:10].expand(5, 10), a * weight
        del a, b
        c = torch.zeros(3000)
        c.mul_(weight.repeat(3))
        return c.view(3, 1000)

    assert memory.count(call) == memory.Memory(held=4000, peak=24000)


def test_what_a_backward_pass_keeps_is_counted():
    weights = [torch.randn(100, 100, requires_grad=True) for _ in range(5)]

    def forward():
        x = torch.randn(50, 100)
        for weight in weights:
            x = x @ weight
        return x

    def backward():
        return torch.autograd.grad(forward().sum(), weights)

    # The input of every product is kept, and the output at last.
    assert memory.count(forward).peak == 6 * 50 * 100 * 4
    # At the end all gradients are there, and those of the first product's input and output.
    assert memory.count(backward).peak >= 5 * 100 * 100 * 4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"loss__balancing_fac": 1e-4, "loss__slices": 3},
        {"model__energy": True},
        {"training__checkpoint_activations": True},
    ],
)
def test_the_count_is_what_pytorch_takes(tmp_path, fields):
    """The peak of a step's real allocations, as the profiler records them."""
    job = ScoreTraining(tiny.config(tmp_path, model__nf=16, **fields), CPU)
    counted = memory.count_step(job, 16)
    job.model.train()
    x = torch.rand(16, 1, 8, 8)
    labels = torch.zeros(16, dtype=torch.long)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        job.objective(x, labels, job.objective.draw(x))
    now = peak = x.nbytes + labels.nbytes
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert counted.per_image * 16 == pytest.approx(peak, rel=0.02)


def test_nothing_real_is_changed(tmp_path):
    """Counters, random numbers and gradients stay, and what is kept for later is real."""
    resampling.fir_matrix.cache_clear()
    job = ScoreTraining(tiny.config(tmp_path, model__ch_mult=(1, 1), model__fir=True), CPU)
    job.model.norm = torch.nn.BatchNorm2d(1)
    network = job.model.network
    job.model.network = lambda *inputs: job.model.norm(network(*inputs))
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    random = torch.get_rng_state()
    memory.count_step(job, 4)
    torch.testing.assert_close(dict(job.model.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in job.model.parameters())
    x = torch.rand(4, 1, 8, 8)
    loss, _ = job.objective(x, None, job.objective.draw(x))
    assert type(loss) is torch.Tensor
    assert loss.isfinite()


def test_compiled_layers_count_as_plain_ones(tmp_path):
    """And are not compiled for it."""
    jobs = [
        ScoreTraining(tiny.config(tmp_path, compute__compile=compiled), CPU)
        for compiled in (False, True)
    ]
    graphs = counters["stats"]["unique_graphs"]
    assert memory.count_step(jobs[0], 4) == memory.count_step(jobs[1], 4)
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_step_in_bfloat16_keeps_less(tmp_path):
    steps = [
        memory.count_step(
            ScoreTraining(tiny.config(tmp_path, model__nf=32, compute__precision=name), CPU), 16
        )
        for name in ("fp32", "bf16")
    ]
    assert steps[1].per_image < 0.75 * steps[0].per_image


def train(name, **fields):
    """Train for a step; returns the job, and what the log said of memory."""
    job = run_lib.train(tiny.config("cache", training__n_iters=1, **fields), name)
    log = Workdir(name).log_file.read_text().splitlines()
    return job, [line for line in log if "step keeps" in line]


def test_training_says_what_a_step_keeps(tmp_path, monkeypatch):
    """Of the images that a process takes at a time; small networks are not worth the seconds."""
    monkeypatch.chdir(tmp_path)
    _, said = train("small")
    assert not said
    monkeypatch.setattr(memory, "FEW_WEIGHTS", 0)
    job, (line,) = train("large", training__microbatch=4)
    step = memory.count_step(job, 4)
    assert f"A step keeps about {memory.readable(step.total)}: " in line
    assert line.endswith(f"{memory.readable(step.per_image)} for each of 4 images.")


def test_training_does_not_fail_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "FEW_WEIGHTS", 0)

    def fail(call):
        raise NotImplementedError("of fake tensors")

    monkeypatch.setattr(memory, "count", fail)
    _, (line,) = train("run")
    assert line.endswith("What a step keeps could not be counted (NotImplementedError).")


def test_advice_names_a_microbatch_that_fits():
    step = memory.Step(2 * memory.GIB, 345 * memory.MIB, 128)
    assert memory.readable(step.total) == "45.1 GiB"
    total = 24 * memory.GIB
    fits = step.images_within(0.9 * total)
    assert step.fixed + fits * step.per_image <= 0.9 * total < step.fixed + (fits + 1) * 345 * 2**20
    assert f"24 GiB, less than a step keeps: --config.training.microbatch={fits} would fit." in (
        memory.advice(step, total, whole_batches=False)
    )
    assert f"{fits} images for each process" in memory.advice(step, total, whole_batches=True)
    assert memory.advice(step, memory.GIB, False).endswith("keeps of a single image.")
