"""--dry_run: what it counts, that it writes nothing, and that it fails where the command would."""

import math
import re

import pytest
import tiny
import torch
from commands import command
from torch.utils.flop_counter import FlopCounterMode

import planning
import run_lib
from models.jvp import value_and_jvp
from training.cost import cost_of, step_of
from training.score import ScoreTraining

SAMPLING = "run_lib_sampling.py --workdir W"
EVALUATION = "run_lib_evaluation.py --workdir W"
INCEPTION = f"{EVALUATION} --encode_dataset --config.eval.features=inception"

FASHION = "--config.data.dataset=FashionMNIST --config.data.image_size=28"


@pytest.fixture
def run(tmp_path, monkeypatch, cache):
    """A directory with a trained run W, and the flags of its configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "cut.pth").write_bytes(b"PK")
    run_lib.train(tiny.config(cache, training__n_iters=4), "W")
    return tmp_path, [*tiny.arguments(cache), "--config.eval.features=classifier"]


def files(here):
    return {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("main.py --workdir V", "a step: "),
        ("main.py --workdir V", "data: digits, train: 1437 prepared in "),
        (f"main.py --workdir V {FASHION}", "train: downloaded by tensorflow_datasets into data"),
        (SAMPLING, "in all: 6 evaluations for each, "),
        (f"{EVALUATION} --metric nll --calculate", "an evaluation of all 360: "),
        (f"{EVALUATION} --metric asym --calculate --nl 2", "weights: raw weights of step 4"),
        (f"{EVALUATION} --encode_dataset", "features: classifier"),
        (INCEPTION, "weights are downloaded on first use"),
    ],
)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run, line, said):
    here, flags = run
    before = files(here)
    script, *typed = line.split()
    done = command(script, here, [*flags, *typed, "--dry_run"])
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "config.model.nf = 8" in done.stdout
    assert files(here) == before


MISSING = [
    ("main.py --workdir V --restore none.pth", "none.pth"),
    ("main.py --workdir V --config.data.dataset=folder --config.data.root=none", "none"),
    (f"{SAMPLING} --checkpoint_idx 9", "checkpoint_9.pth"),
    (f"{EVALUATION} --encode", "division 0"),
    (f"{EVALUATION} --fidis", "generated_stat.npz"),
    (f"{INCEPTION} --config.eval.inception_weights=none.pth", "none.pth"),
    (f"{INCEPTION} --config.eval.inception_weights=cut.pth", "cut.pth"),
    ("main.py --workdir V --config.model.num_classes=3", "10 classes"),
    (f"{EVALUATION} --metric nll --read", "--calculate"),
]


@pytest.mark.parametrize(("line", "named"), MISSING, ids=[line for line, _ in MISSING])
def test_a_dry_run_fails_where_the_command_would(run, line, named):
    here, flags = run
    script, *typed = line.split()
    for dry in ([], ["--dry_run"]):
        tiny.check_sentence(command(script, here, [*flags, *typed, *dry]), named)


def test_a_dry_run_checks_existing_samples_and_counts_products(run, capsys):
    here, flags = run
    done = command(SAMPLING, here, [*flags, "--division_idx=0"])
    assert done.returncode == 0, done.stderr
    for dry in ([], ["--dry_run"]):
        done = command(SAMPLING, here, [*flags, "--config.sampling.snr=0.1", *dry])
        tiny.check_sentence(done, "sampling.snr=")
    flops = {}
    for metric in ("nll", "asym"):
        line = f"{EVALUATION} --metric {metric} --calculate --dry_run"
        done = command(line, here, [*flags, "--config.loss.slices=2"])
        number, scale = re.search(r"an evaluation: ([\d.]+)([kMG])FLOP", done.stdout).groups()
        flops[metric] = float(number) * 1000 ** " kMG".index(scale)
    assert flops["asym"] > 2 * flops["nll"]  # two forward and two backward products


def test_a_training_costs_its_remaining_steps(run, cache, capsys):
    config = tiny.config(cache, training__n_iters=14)
    planning.train(config, "W", None, ScoreTraining)
    said = capsys.readouterr().out
    step, total = (
        float(number) * 1000 ** " kMGT".index(scale or " ")
        for number, scale in re.findall(r"(?:a step|in all): ([\d.]+)([kMGT]?)FLOP", said)
    )
    assert total == pytest.approx(10 * step, rel=0.01)  # 4 are done; both are rounded


def test_flops_are_those_of_pytorchs_counter(cache):
    config = tiny.config(cache)
    job = ScoreTraining(config, torch.device("cpu"))
    flops, fixed, per_image = step_of(job, images=4)
    weights = sum(p.numel() * p.element_size() for p in job.model.parameters())
    assert fixed >= 3 * weights  # averages and moments, beside the weights themselves
    assert per_image > 4 * math.prod(job.domain.shape)
    x = torch.rand(4, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        loss, _ = job.objective(x, torch.zeros(4, dtype=torch.long), job.objective.draw(x))
        loss.backward()
    assert flops == counter.get_total_flops() / 4


def test_forward_mode_of_real_weights_has_a_cost():
    net = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.SiLU(), torch.nn.Conv2d(4, 4, 1))

    def call():
        x = torch.rand(2, 4, 8, 8)
        value_and_jvp(net, x, x[None])

    assert cost_of(call).flops == 2 * 2 * (2 * 4 * 4 * 64)  # two images, two products
