"""--dry_run: what it says is what happens, and nothing is done."""

import pytest
import tiny
import torch
from commands import TINY, command, start
from faults import brief_features
from test_run_lib import cache  # noqa: F401 (a fixture)
from torch.utils.flop_counter import FlopCounterMode

import run_lib
from models import memory
from planning import costs
from planning import training as planned
from training.score import ScoreTraining

CPU = torch.device("cpu")


def dry(script, *extra, cwd, cache, flags="", **fields):  # noqa: F811
    arguments = [*tiny.arguments(cache, **fields), "--workdir=run", "--dry_run", *extra]
    done = command(f"{script} {flags}", cwd, arguments)
    assert done.returncode == 0, done.stderr
    assert "nothing was written" in done.stdout
    return done.stdout


def results_of(place):
    """Every file of a run but its locks, with the time of its last change."""
    paths = [path.relative_to(place) for path in (place / "results").rglob("[!.]*")]
    return {(path, (place / path).stat().st_mtime_ns) for path in paths if (place / path).is_file()}


def check_written(said, place, before, after):
    """A dry run `said` of every file that was written between `before` and `after`."""
    lines = said.partition("written\n")[2].splitlines()
    patterns = [line.split(", ")[0].strip() for line in lines if line.startswith("  ")]
    for path, _ in after - before:
        assert any(path.match(pattern) for pattern in patterns), path
    for pattern in patterns:
        assert list(place.glob(pattern)), pattern


SAMPLES = [
    ("run_lib_sampling.py", "--png"),
    ("run_lib_evaluation.py", "--encode", "--encode_dataset"),
    ("run_lib_evaluation.py", "--nfe"),
    ("run_lib_evaluation.py", "--fidis", "--prdc"),
    ("run_lib_evaluation.py", "--metric=asym", "--calculate", "--nl=2", "--bs=200"),
    ("run_lib_evaluation.py", "--metric=asym", "--read"),
    ("run_lib_evaluation.py", "--metric=nll", "--calculate", "--atol=1", "--rtol=1"),
]
CLASS_SAMPLES = [
    ("run_lib_sampling.py", "--mode=full", "--png"),
    ("run_lib_evaluation.py", "--stat", "--latent"),
    ("run_lib_evaluation.py", "--fidis", "--mode=class"),
    ("run_lib_evaluation.py", "--nfe"),
]


@pytest.mark.parametrize(
    ("trained", "evaluated", "count", "lines"),
    [
        ("digits", "digits", "num_samples", SAMPLES),
        ("digits_cfg", "digits_cfg_guided", "num_samples_all", CLASS_SAMPLES),
    ],
)
def test_samples_and_evaluations_write_what_was_said(tmp_path, trained, evaluated, count, lines):
    """Every file of theirs, and none besides."""
    fields = {"training__n_iters": 1, "eval__batch_size": 20, "eval__features": "classifier"}
    fields |= {"sampling__method": "euler", "sampling__steps": 2}
    arguments = [*tiny.arguments("cache", **fields)[1:], "--workdir=run"]
    folder = f"--config={tiny.ROOT}/configs/demo"
    done = command("main.py", tmp_path, [f"{folder}/{trained}.py", *arguments])
    assert done.returncode == 0, done.stderr
    arguments = [f"{folder}/{evaluated}.py", *arguments, f"--config.eval.{count}=20"]
    for script, *flags in lines:
        said = command(script, tmp_path, [*arguments, *flags, "--dry_run"])
        assert said.returncode == 0, said.stderr
        before = results_of(tmp_path)
        done = start(script, tmp_path, [*arguments, *flags], brief_features).wait()
        assert done.returncode == 0, done.stderr
        check_written(said.stdout, tmp_path, before, results_of(tmp_path))


def test_flops_of_a_product():
    weight = torch.zeros(30, 40)
    assert costs.count_flops(lambda: torch.rand(20, 30) @ weight) == 2 * 20 * 30 * 40
    assert costs.readable_flops(37.2e9) == "37.2 GFLOP"


def test_flops_of_a_step_are_those_of_a_real_one(tmp_path):
    """By PyTorch's counter; a QC step with two slices pushes two more vectors each way."""
    job = ScoreTraining(tiny.config(tmp_path), CPU)
    counted = planned.flops_of_step(job, 4)
    assert all(parameter.grad is None for parameter in job.model.parameters())
    with FlopCounterMode(display=False) as counter:
        loss, _ = memory.loss_of(job, 4)
        loss.backward()
    assert counted == counter.get_total_flops()
    for fields in ({"loss__balancing_fac": 1e-4, "loss__slices": 2}, {"model__energy": True}):
        other = ScoreTraining(tiny.config(tmp_path, **fields), CPU)
        assert planned.flops_of_step(other, 4) > 1.5 * counted


def test_training(tmp_path, cache):  # noqa: F811
    """It says what the run then writes, and reads from where it goes on."""
    said = dry("main.py", cwd=tmp_path, cache=cache)
    assert not list(tmp_path.iterdir())
    assert "config.training.n_iters = 8" in said
    config = tiny.config(cache)
    count = sum(p.numel() for p in ScoreTraining(config, CPU).model.parameters())
    assert f"parameters: {count:,}" in said
    assert "steps: 0 to 8, batch 16; from the beginning" in said
    assert "results/run/checkpoints/checkpoint_*.pth, 2 files" in said

    done = tiny.run("main.py", *tiny.arguments(cache, training__n_iters=4), "--workdir=run",
                    cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_written(said, tmp_path, set(), results_of(tmp_path))
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    said = dry("main.py", cwd=tmp_path, cache=cache)
    assert "steps: 4 to 8, batch 16; from results/run/checkpoints" in said
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


def test_sampling(tmp_path, cache):  # noqa: F811
    said = dry("run_lib_sampling.py", "--division_idx=1", cwd=tmp_path, cache=cache)
    assert not list(tmp_path.iterdir())
    assert "samples: 10 images of shape (1, 8, 8), pc sampler" in said
    assert "evaluations: 6 for each sample" in said  # 3 steps, with a corrector
    assert "results/run/eval_sampling/1/samples_*.npz" in said
    assert "eval_sampling/0" not in said
    said = dry("run_lib_sampling.py", "--sampler=heun", cwd=tmp_path, cache=cache)
    assert "evaluations: 35 for each sample" in said
    said = dry("run_lib_sampling.py", "--ode", cwd=tmp_path, cache=cache)
    assert "evaluations: as the tolerances ask" in said


def test_evaluation(tmp_path, cache):  # noqa: F811
    for metric, file in (("nll", "nll/bpd_*.npz"), ("asym", "asym/repeat_*.npz")):
        said = dry("run_lib_evaluation.py", f"--metric={metric}", "--calculate",
                   cwd=tmp_path, cache=cache)  # fmt: skip
        assert "FLOP for each of them" in said
        assert f"results/run/{file}" in said
    said = dry("run_lib_evaluation.py", "--encode", "--fidis", cwd=tmp_path, cache=cache)
    assert "results/run/stat/generated_stat.npz" in said
    assert "metrics: fid_is" in said
    assert "prdc" not in said
    said = dry("run_lib_evaluation.py", "--metric=asym", "--read", cwd=tmp_path, cache=cache)
    assert "results/run/asym/asym.png" in said
    assert "FLOP" not in said
    assert not list(tmp_path.iterdir())


def test_class_samples(tmp_path):
    config = f"--config {tiny.ROOT}/configs/eval/cifar10/eval_cifar10_configs.py"
    for mode in ("class", "full"):
        evaluate = f"run_lib_evaluation.py {config} --workdir run --fidis --mode {mode} --dry_run"
        done = command(evaluate, tmp_path, TINY)
        assert done.returncode == 0, done.stderr
        assert ("results/run/fid_is.txt" in done.stdout) == (mode == "class")
    line = (
        "run_lib_sampling.py --config configs/eval/cifar10/eval_cifar10_configs.py --workdir run "
        "--mode class --classid 3 --dry_run"
    )
    line = line.replace("configs/eval", f"{tiny.ROOT}/configs/eval")
    done = command(line, tmp_path, TINY)
    assert done.returncode == 0, done.stderr
    assert "samples: 5100 images of shape (3, 8, 8), pc sampler" in done.stdout
    assert "results/run/eval_samples/3/samples_*.npz, 51 files" in done.stdout


def test_a_workdir_of_another_run_is_refused(tmp_path, cache, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    run_lib.train(tiny.config(cache, training__n_iters=1), "run")
    done = command(
        "main.py", tmp_path, [*tiny.arguments(cache, model__nf=16), "--workdir=run", "--dry_run"]
    )
    tiny.check_sentence(done, "config.model.nf 8 (now 16)")
