"""The benchmarks of samplers: what they count and draw, and their tables, on a tiny network."""

import json

import evaluations
import pytest
import tiny
import tiny_classifier
import torch
from commands import start
from sklearn.naive_bayes import GaussianNB

import datasets
import run_lib
import sampling
import sde_lib
from benchmarks import excess_langevin, guidance_interval, quality, samplers
from demo.recognise import flatten
from models.scores import input_gradient
from run_lib_sampling import sample
from samplers import fast
from storage.files import load_npz
from storage.workdir import Workdir
from utils import UserError

BUDGETS = 1, 2, 5, 35, 80


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the runs U and C, a score model and an energy's."""
    here = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name, energy in (("U", False), ("C", True)):
            more = {"training__n_iters": 2, "model__energy": energy, "model__init_scale": 1.0}
            run_lib.train(tiny.config("cache", **more), name)
    return here


def quick():
    """In place of the networks that measure quality, what is trained in no time."""
    evaluations.brief_features()
    quality.recogniser = lambda train: GaussianNB().fit(flatten(train.images), train.labels)


MODELS = [
    *tiny.arguments("cache", model__init_scale=1.0, eval__num_samples=12, eval__batch_size=12),
    *("--config.sampling.rtol=0.1", "--config.sampling.atol=0.1"),
    *("--models=U=U", "--models=C=C"),
]


def run(line, place, arguments=MODELS):
    """Run a benchmark in a process of its own."""
    done = start(line, place, arguments, prepare=quick).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(said):
    """The cells of the Markdown tables in what a benchmark printed, without their heads."""
    table = [line for line in said.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    return [row for row in cells if row[0] in ("U", "C", "exact")]


@pytest.mark.parametrize("name", sorted(fast.SAMPLERS))
def test_steps_cost_what_they_may(name):
    method = fast.SAMPLERS[name]
    for nfe in BUDGETS:
        count = samplers.steps_within(method, nfe)
        assert count == 0 or method.nfe(count) <= nfe
        assert method.nfe(count + 1) > nfe


def test_quality_of_every_sampler(place):
    """Models of both kinds; what stands is not measured again."""
    line = "benchmarks/samplers.py --workdir all --samplers heun restart --nfe 3 5 --seeds=2"
    said = run(line, place)
    assert "U, heun, 2 steps, seed 1: {'nfe': 3.0" in said
    table = [row[:3] for row in rows(said) if row[0] == "C"]
    assert [row[:2] for row in table] == [["C", name] for name in ("heun", "heun", "PC", "RK45")]
    assert [row[2] for row in table if row[1] != "RK45"] == ["3", "5", "6"]
    recorded = json.loads((place / "results/all/metrics.json").read_text())
    assert len(recorded) == 2 * 4 * 2
    assert recorded["U, PC, seed 0"]["fid"] != recorded["C, PC, seed 0"]["fid"]
    assert recorded["U, PC, seed 0"]["fid"] != recorded["U, PC, seed 1"]["fid"]
    assert (place / "results/all/figures/quality_against_nfe.png").stat().st_size > 1000
    again = run(line, place)
    assert rows(again) == rows(said)
    assert "seed 1: {" not in again


def test_excess_noise(place):
    few = ["--sigmas=0.5", "--rounds", "0", "2", "--s_churn=0", "--seeds=1"]
    line = "benchmarks/excess_langevin.py --workdir excess"
    said = run(line, place, [*MODELS, *few, "--config.sampling.steps=7"])
    assert "σ = 0.5" in said
    for model in ("U", "C", "exact"):
        costs = [row[1:3] for row in rows(said) if row[0] == model]
        assert costs == [["0", "13"], ["2", "17"], ["0", "55"]]
    assert (place / "results/excess/figures/excess_langevin.png").stat().st_size > 1000


def test_guidance_at_some_noise_levels(place, monkeypatch):
    """The classifier is asked less; where the interval is everything, the samples are the same."""
    monkeypatch.chdir(place)
    tiny_classifier.train_score("cache")
    tiny_classifier.train("cache", "guide", training__n_iters=2)
    line = "benchmarks/guidance_interval.py --workdir guided --seeds=1 --samplers=heun --nfe=7"
    line += f" --restore_classifier={Workdir('guide').checkpoint()}"
    more = {"eval__num_samples": 3, "sampling__scaling_factor": 50.0}
    arguments = tiny_classifier.arguments("guided", "cache", **more)
    arguments = [argument for argument in arguments if "n_iters" not in argument]
    said = run(line, place, [*arguments, "--interval=(0.1, 2.0)", "--interval=(0.0, 9.0)"])
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines()[-3:]]
    assert [row[:4] for row in table] == [
        ["heun", "everywhere", "7", "7"],
        ["heun", "(0.1, 2.0)", "7", "4"],
        ["heun", "(0.0, 9.0)", "7", "7"],
    ]
    recorded = json.loads((place / "results/guided/metrics.json").read_text()).values()
    everywhere, between, at_all = (entry["fid"] for entry in recorded)
    assert everywhere == at_all != between


@pytest.mark.parametrize("text", ["(0.1,)", "0.1", "(1, x)", "("])
def test_a_strange_interval_gets_a_sentence(text):
    with pytest.raises(UserError, match="expected two noise levels"):
        guidance_interval.read_interval(text)


def test_a_model_without_a_workdir_gets_a_sentence():
    with pytest.raises(UserError, match="expected NAME=WORKDIR"):
        quality.open_model(None, None, "demo")


@pytest.mark.parametrize("method", ["pc", "heun"])
def test_samples_are_those_of_the_command(place, monkeypatch, method):
    monkeypatch.chdir(place)
    config = tiny.config("cache", model__init_scale=1.0, sampling__method=method)
    config.eval.num_samples, config.eval.num_divisions, config.sampling.steps = 12, 1, 3
    sample(config, "U")
    paths = [Workdir("U").division(0, method) / f"samples_{number}.npz" for number in (0, 1)]
    files = [load_npz(path, "samples", "nfe") for path in paths]
    sde = sde_lib.from_config(config)
    model = quality.open_model(config, sde, "U=U")
    sampler = sampling.from_config(config.sampling, sde)
    streams = ("division", config.seed, 0), ("image", config.seed)
    images, nfe, _ = quality.draw(sampler, model.score, config, *streams)
    assert [len(file["samples"]) for file in files] == [10, 2]
    assert (images[:10] == files[0]["samples"]).all()
    assert (images[10:] == files[1]["samples"]).all()
    assert nfe == files[0]["nfe"]


@pytest.mark.parametrize("time", [0.1, 0.5])
def test_the_exact_score_is_the_gradient_of_the_log_density(place, monkeypatch, time):
    monkeypatch.chdir(place)
    config = tiny.config("cache")
    sde = sde_lib.from_config(config)
    images = datasets.load(config.data, "train").images
    data = torch.from_numpy(images.copy()).flatten(1).double() / 255
    x = data[:5].reshape(5, 1, 8, 8) + torch.randn(5, 1, 8, 8, dtype=torch.float64)
    t = torch.full((5,), time)
    variance = float(sde.sigma(t[0])) ** 2

    def log_density(x):
        squares = (x.flatten(1)[:, None] - data).square().sum(2)
        return torch.logsumexp(-squares / (2 * variance), 1)

    expected = input_gradient(log_density, x)
    found = excess_langevin.exact_model(config, sde).score(x.float(), t)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0.02)


@pytest.mark.parametrize("series", ["excess", "churned"])
def test_no_excess_is_heuns_sampler(series):
    sde = sde_lib.VESDE(0.03, 6.0)
    sampler = {
        "excess": excess_langevin.excess(sde, 9, 0.5, rounds=0),
        "churned": excess_langevin.churned(sde, 9, 0.0),
    }[series]
    heun = fast.FastSampler(fast.HEUN, sde, sampler.sigmas)
    latents = torch.randn(3, 1, 4, 4)
    found, nfe = sampler(lambda x, t: -x, latents)
    expected, cost = heun(lambda x, t: -x, latents)
    assert torch.equal(found, expected)
    assert nfe == cost
