"""The commands as a user types them: mistakes get a sentence, and nothing is written."""

import ast
import importlib.util
import pathlib
import re

import golden
import pytest
import tiny
import torch
from commands import command, start

import models
from configs import common
from storage import settings
from storage.workdir import Workdir
from utils import UserError

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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("training.batch_size", 0),
        ("optim.warmup", -1),
        ("model.ch_mult", (1, 0)),
        ("model.sigma_min", 50.0),
        ("optim.lr", float("nan")),
        ("optim.grad_clip", 0.0),
        ("model.dropout", 1.0),
        ("sampling.scaling_factor", float("inf")),
    ],
)
def test_a_number_out_of_range_is_named(field, value):
    config = common.qc("u_ncsn", common.CIFAR10)
    settings.check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=field):
        settings.check(config)


def test_help_imports_nothing_heavy():
    done = tiny.run("main.py", "--help", cwd=tiny.ROOT, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "--workdir: " in done.stdout
    assert "--restore: " in done.stdout
    assert "absl" in done.stderr
    assert "torch" not in done.stderr


MISTAKES = [
    (["--config=none.py"], "none.py"),
    (["--frobnicate"], "frobnicate"),
    (["--config.model.num_scale=3"], "num_scales"),
    (["--bs=many"], "--bs"),
    (["--bs=0"], "--bs"),
    (["--config.data.dataset=CIFAR"], "data.dataset"),
    (["--config.data.dataset=folder", f"--config.data.root={tiny.ROOT}"], "train"),
    (["--config.sampling.method=ddim"], "config.sampling.method"),
    (["--config.device=cuda"], "config.device"),
    ([f"--restore={golden.DIRECTORY}/official_qc_checkpoint.pth"], "official_qc"),
    ([f"--workdir={tiny.CONFIG}/run"], "digits.py/run"),
]


@pytest.mark.parametrize(
    ("script", "more", "named"),
    [
        *(("main.py", *mistake) for mistake in MISTAKES),
        ("run_lib_sampling.py", ["--num_divisions=-1"], "--num_divisions"),
        ("run_lib_sampling.py", [], "checkpoint.pth"),
    ],
)
def test_a_mistake_gets_a_sentence_and_writes_nothing(tmp_path, script, more, named):
    done = command(script, tmp_path, [f"--config={tiny.CONFIG}", "--workdir=run", *more])
    tiny.check_sentence(done, named)
    assert list(tmp_path.iterdir()) == []


def test_the_published_names_print_their_flags(tmp_path):
    done = command("run_lib_evaluation_nll.py --help", tmp_path)
    assert done.returncode == 1  # absl's
    assert "--calculate" not in done.stdout.partition("flags:")[0]
    assert "[no]calculate: " in done.stdout


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("report.py pretrained", "The flag --workdir is missing: a run to report on"),
        ("main.py --workdir W", "The flag --config is missing: configuration file."),
        ("main.py --workdir W --config none.py", "loaded: No such file or directory: 'none.py'"),
        (f"report.py --workdir {tiny.ROOT}/tests/results", "tests/results does not exist; "),
        (f"main.py --workdir W --config {tiny.CONFIG} --model classifier", "digits_classifier.py"),
        (
            f"run_lib_evaluation_nll.py --workdir W --config {tiny.CONFIG} --read --bs 3",
            "--read without --calculate",
        ),
    ],
)
def test_what_is_missing_is_named_in_a_sentence(tmp_path, line, sentence):
    tiny.check_sentence(command(line, tmp_path), sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_may_be_typed_with_results():
    assert Workdir("results/W").root == Workdir("W").root
    assert Workdir("/results/W").root == pathlib.Path("/results/W")


def test_an_error_of_the_configuration_file_is_named(tmp_path):
    path = tmp_path / "bad_config.py"
    path.write_text("raise ValueError('boom')")
    done = command("main.py", tmp_path, [f"--config={path}", "--workdir=run"])
    tiny.check_sentence(done, "boom")


@pytest.mark.slow
def test_a_command_can_be_deterministic(tmp_path, cache):
    mark = tmp_path / "mark"

    def prepare():
        use = torch.use_deterministic_algorithms
        torch.use_deterministic_algorithms = lambda mode: (use(mode), mark.touch())

    extra = [*tiny.arguments(cache, training__n_iters=1), "--workdir=run", "--deterministic"]
    done = start("main.py", tmp_path, extra, prepare).wait()
    assert done.returncode == 0, done.stderr
    assert mark.exists()


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
        ("run_lib_sampling.py --steps 3", "--steps"),
        ("run_lib_sampling.py --sampler heun --num_scales 3", "--num_scales"),
        ("run_lib_sampling.py --scale 2", "--scale"),
        ("run_lib_sampling.py --restore a.pth --checkpoint_idx 3", "--checkpoint_idx"),
        ("run_lib_sampling.py --restore_classifier a.pth", "--restore_classifier"),
        ("run_lib_evaluation.py --fidis --checkpoint_idx 3", "--checkpoint_idx"),
        ("run_lib_evaluation.py --fidis --ema", "--ema"),
        ("run_lib_evaluation.py --encode --rtol 0.1", "--rtol"),
        ("run_lib_evaluation.py --nfe --dataset_stat F", "--dataset_stat"),
        ("run_lib_evaluation.py --fidis --scale 2", "--scale"),
        ("run_lib_evaluation.py --metric nll --read --rtol 0.1", "--rtol"),
    ],
)
def test_a_flag_that_is_not_read_is_refused_and_named(tmp_path, line, flag):
    done = command(line, tmp_path, [f"--config={tiny.CONFIG}", "--workdir=run"])
    tiny.check_sentence(done, flag)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "files", ["models/*", "readers/*", "storage/*", "training/*", "[dlsu]*", "run_lib"]
)
def test_messages_of_shared_code_name_no_flag_that_a_command_may_lack(files):
    for path in tiny.ROOT.glob(f"{files}.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                named = {*re.findall(r"--(\w+)", ast.unparse(node))}
                assert named <= {"config", "workdir", "deterministic"}, path
