"""The commands as a user types them: mistakes get a sentence, and nothing is written."""

import ast
import importlib.util
import re

import golden
import pytest
import tiny
import torch
from commands import command, start
from test_run_lib import cache  # noqa: F401 (a fixture)

import models
from storage import settings

CONFIGS = sorted(
    path
    for path in (tiny.ROOT / "configs").rglob("*.py")
    if path.name not in ("__init__.py", "common.py", "points.py", "study.py")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(tiny.ROOT / "configs")))
def test_every_configuration_loads_and_is_short(path):
    spec = importlib.util.spec_from_file_location("some_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    assert config.model.name in models.MODELS
    settings.check(config)
    assert len(path.read_text().splitlines()) < 60


def test_help_imports_nothing_heavy():
    done = tiny.run("main.py", "--help", cwd=tiny.ROOT, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "--workdir" in done.stdout
    assert "--restore" in done.stdout
    assert "absl" in done.stderr
    assert "torch" not in done.stderr


def bad_config(tmp_path, text):
    path = tmp_path / "bad_config.py"
    path.write_text(text)
    return [f"--config={path}", "--workdir=run"]


MISTAKES = {
    "missing config": (
        lambda tmp, args: ["--config=none.py", "--workdir=run"],
        "No such file or directory: 'none.py'",
    ),
    "config that raises": (
        lambda tmp, args: bad_config(tmp, "raise ValueError('boom')"),
        "ValueError: boom",
    ),
    "config without get_config": (lambda tmp, args: bad_config(tmp, "x = 1"), "get_config"),
    "no workdir": (lambda tmp, args: args[:1], "--workdir"),
    "unknown flag": (lambda tmp, args: [*args, "--frobnicate"], "frobnicate"),
    "unknown field": (
        lambda tmp, args: [*args, "--config.model.num_scale=3"],
        "num_scales",
    ),
    "unknown section": (
        lambda tmp, args: [*args, "--config.modl.nf", "3"],
        "no field modl",
    ),
    "field of another section": (
        lambda tmp, args: [*args, "--noconfig.model.continuous"],
        "no field continuous",
    ),
    "field below a field": (
        lambda tmp, args: [*args, "--config.sed.x=1"],
        "no field sed",
    ),
    "bad number": (lambda tmp, args: [*args, "--bs=many"], "--bs=many"),
    "batch size": (lambda tmp, args: [*args, "--bs=0"], "--bs is 0"),
    "data set": (
        lambda tmp, args: [*args, "--config.data.dataset=CIFAR"],
        "data.dataset is 'CIFAR'; expected one of: CIFAR10",
    ),
    "sampler": (
        lambda tmp, args: [*args, "--config.sampling.method=ddim"],
        "config.sampling.method is 'ddim'",
    ),
    "cuda": (lambda tmp, args: [*args, "--config.device=cuda"], "use --config.device=cpu"),
    "device": (lambda tmp, args: [*args, "--config.device=abacus"], "config.device is 'abacus'"),
    "checkpoint of another shape": (
        lambda tmp, args: [*args, f"--restore={next(golden.DIRECTORY.glob('official_*.pth'))}"],
        "does not fit the configuration",
    ),
    "folder without images": (
        lambda tmp, args: [*args, "--config.data.dataset=folder", f"--config.data.root={tmp}"],
        "train",
    ),
    "unwritable workdir": (
        lambda tmp, args: [args[0], *args[2:], f"--workdir={tiny.CONFIG}/run"],
        "cannot be written (Not a directory)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence_and_writes_nothing(tmp_path, mistake):
    arrange, said = MISTAKES[mistake]
    here = tmp_path / "here"
    here.mkdir()
    args = [f"--config={tiny.CONFIG}", "--workdir=run"]
    done = command("main.py", here, arrange(tmp_path, args))
    tiny.check_sentence(done, said)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--bs=0"], "--bs is 0"),
        (["--num_divisions=-1"], "--num_divisions is -1"),
        ([], "checkpoint.pth does not exist"),
    ],
)
def test_a_mistake_in_sampling_gets_a_sentence_and_writes_nothing(tmp_path, more, said):
    arguments = [f"--config={tiny.CONFIG}", "--workdir=run"]
    done = command("run_lib_sampling.py", tmp_path, [*arguments, *more])
    tiny.check_sentence(done, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_command_can_be_deterministic(tmp_path, cache):  # noqa: F811
    """--deterministic holds in training, sampling and evaluation."""
    mark = tmp_path / "mark"

    def prepare():
        use = torch.use_deterministic_algorithms

        def spy(mode, **options):
            use(mode, **options)
            mark.write_text(f"{torch.are_deterministic_algorithms_enabled()}")

        torch.use_deterministic_algorithms = spy

    lines = [
        "main.py",
        "run_lib_sampling.py --num_samples 4 --num_divisions 1",
        "run_lib_evaluation_nll.py --calculate --bs 180 --atol 0.5 --rtol 0.5",
    ]
    for line in lines:
        arguments = tiny.arguments(cache, training__n_iters=1)
        extra = [*arguments, "--workdir=run", "--deterministic"]
        done = start(line, tmp_path, extra, prepare).wait()
        assert done.returncode == 0, done.stderr
        assert mark.read_text() == "True"
        mark.unlink()


# ---------------------------------------------------------------- flags and fields


@pytest.mark.parametrize(
    "twice",
    [
        ["--config.model.ch_mult=(1,2)", "--config.model.ch_mult=(1,2)"],
        ["--config.model.ch_mult", "(4,)", "--config.model.ch_mult=(1,2)"],
        ["--config.model.ch_mult=(4,)", "--config.model.ch_mult", "(1,2)"],
    ],
)
def test_the_last_of_two_overrides_counts(tmp_path, twice):
    arguments = [f"--config={tiny.CONFIG}", "--workdir=run", "--dry_run", *twice]
    done = command("main.py", tmp_path, arguments)
    assert "config.model.ch_mult = (1, 2)\n" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("main.py --slices 2", "--slices"),
        ("main.py --bs -1", "--bs"),
        ("run_lib_sampling.py --steps 3", "--steps"),
        ("run_lib_sampling.py --sampler heun --num_scales 3", "--num_scales"),
        ("run_lib_sampling.py --scale 2", "--scale"),
        ("run_lib_sampling.py --mode full", "--mode"),
        ("run_lib_sampling.py --restore a.pth --checkpoint_idx 3", "--checkpoint_idx"),
        ("run_lib_sampling.py --restore_classifier a.pth", "--restore_classifier"),
        ("run_lib_evaluation.py --fidis --checkpoint_idx 3", "--checkpoint_idx"),
        ("run_lib_evaluation.py --fidis --ema", "--ema"),
        ("run_lib_evaluation.py --encode --rtol 0.1", "--rtol"),
        ("run_lib_evaluation.py --nfe --dataset_stat F", "--dataset_stat"),
        ("run_lib_evaluation.py --fidis --scale 2", "--scale"),
        ("run_lib_evaluation.py --metric nll --read --rtol 0.1", "--rtol"),
        ("run_lib_evaluation.py --metric nll --calculate --nl 2", "--nl"),
        ("run_lib_evaluation.py --folders a b --fidis --ema", "--ema"),
    ],
)
def test_a_flag_that_is_not_read_is_refused_and_named(tmp_path, line, flag):
    folders = "--folders" in line
    arguments = [] if folders else [f"--config={tiny.CONFIG}", "--workdir=run"]
    done = command(line, tmp_path, arguments)
    tiny.check_sentence(done, flag)
    assert list(tmp_path.iterdir()) == []


# Every command has these; a message of what several commands share names no others.
OF_ALL = {"config", "workdir", "deterministic"}
SHARED = ("storage", "models", "training", "samplers/ode.py", "losses.py", "sampling.py")
SHARED += ("sde_lib.py", "domains.py", "datasets.py", "readers", "likelihood.py", "utils.py")


def test_messages_name_no_flag_that_a_command_may_lack():
    for name in SHARED:
        place = tiny.ROOT / name
        for path in place.glob("*.py") if place.is_dir() else [place]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Raise):
                    named = set(re.findall(r"--(\w+)", ast.unparse(node)))
                    assert named <= OF_ALL, f"{path}: {named}"
