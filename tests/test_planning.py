"""--dry_run: what it counts, that it writes nothing, and that it fails where the command would."""

import math

import pytest
import tiny
import torch
from commands import command
from faults import brief_features
from test_run_lib import cache  # noqa: F401 (a fixture)
from torch.utils.flop_counter import FlopCounterMode

import planning
import run_lib
from training.score import ScoreTraining

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path, monkeypatch, cache):  # noqa: F811
    """A directory with a trained run W, and the flags of its configuration."""
    monkeypatch.chdir(tmp_path)
    brief_features()
    run_lib.train(tiny.config(cache, training__n_iters=4), "W")
    return tmp_path, [*tiny.arguments(cache), "--config.eval.features=classifier"]


def files(here):
    return {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}


SAMPLING = "run_lib_sampling.py --workdir W"
EVALUATION = "run_lib_evaluation.py --workdir W"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("main.py --workdir V", "a step: "),
        (SAMPLING, "evaluations: 6 for each sample"),
        (f"{EVALUATION} --metric nll --calculate", "an evaluation: "),
        (f"{EVALUATION} --metric asym --calculate", "weights: raw weights of step 4"),
        (f"{EVALUATION} --encode_dataset", "features: classifier"),
    ],
)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run, line, said):
    here, flags = run
    before = files(here)
    done = command(f"{line} --dry_run", here, flags)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "config.model.nf = 8" in done.stdout
    assert files(here) == before


MISSING = [
    ("main.py --workdir V --restore none.pth", "none.pth"),
    ("main.py --workdir V --config.data.dataset=folder --config.data.root=none", "none"),
    (f"{SAMPLING} --checkpoint_idx 9", "checkpoint_9.pth"),
    (f"{EVALUATION} --metric nll --read", "results/W/nll"),
    (f"{EVALUATION} --encode", "division 0"),
    (f"{EVALUATION} --fidis", "generated_stat.npz"),
    (
        f"{EVALUATION} --encode_dataset --config.eval.features=inception "
        "--config.eval.inception_weights=none.pth",
        "none.pth",
    ),
    (f"{EVALUATION} --encode_dataset --config.eval.features=best", "eval.features"),
]


@pytest.mark.parametrize(("line", "named"), MISSING, ids=[line for line, _ in MISSING])
def test_a_dry_run_fails_where_the_command_would(run, line, named):
    here, flags = run
    words = line.split()
    typed = [word for word in words if word.startswith("--config.")]
    flags = [
        flag for flag in flags if flag.partition("=")[0] not in {t.partition("=")[0] for t in typed}
    ]
    line = " ".join(word for word in words if word not in typed)
    for dry in (" --dry_run", ""):
        done = command(line + dry, here, [*flags, *typed])
        tiny.check_sentence(done, named)


def test_flops_are_those_of_pytorchs_counter(cache):  # noqa: F811
    config = tiny.config(cache)
    job = ScoreTraining(config, CPU)
    flops, fixed, per_image = planning.step_of(job, images=4)
    weights = sum(p.numel() * p.element_size() for p in job.model.parameters())
    assert fixed >= 3 * weights  # averages and moments, beside the weights themselves
    assert per_image > 4 * math.prod(job.domain.shape)
    x = torch.rand(4, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        loss, _ = job.objective(x, torch.zeros(4, dtype=torch.long), job.objective.draw(x))
        loss.backward()
    assert flops == counter.get_total_flops() / 4


@pytest.mark.parametrize(
    ("number", "text"), [(62.2e12, "62.2 TFLOP"), (999, "999 FLOP"), (3e30, "3e+12 EFLOP")]
)
def test_numbers_have_prefixes(number, text):
    assert planning.readable(number, "FLOP") == text


def test_bytes_have_binary_prefixes():
    assert planning.readable(42.5 * 2**30, "B", 1024) == "42.5 GiB"
