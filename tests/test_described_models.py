"""A checkpoint says what it is: every command after every training, no override repeated."""

import dataclasses
import importlib.util
import json
import re

import pytest
import tiny
from commands import TINY, command, refused, works
from ml_collections import ConfigDict
from test_cli import CONFIGS

pytestmark = pytest.mark.slow
QC = "{}/configs/{}/evaluation/eval_cifar10_config.py"
TRAIN = [
    *TINY,
    "--config.training.n_iters=2",
    "--config.training.batch_size=2",
    "--config.training.snapshot_freq=1",
    "--config.training.snapshot_sampling=False",
    "--config.model.sigma_min=5.0",  # the flow of random weights is stiff below it
]
CPU = ["--config.device=cpu", "--config.eval.features=classifier", "--config.data.cache=cache"]
SMALL = ["--config.eval.num_samples=4", "--config.eval.num_divisions=2"]
LOOSE = ["--config.sampling.atol=0.1", "--config.sampling.rtol=0.1"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of training: its configuration files, and what is typed in training alone."""

    training: str = "u_ncsn/training/cifar10_ncsnpp_deep_continuous.py"
    evaluation: str = "u_ncsn/evaluation/eval_cifar10_config.py"
    typed: tuple[str, ...] = ()
    by_class: bool = False
    of_classifier: bool = False


KINDS = {
    "U": Kind(),
    "C": Kind(
        "c_ncsn/training/cifar10_ncsnpp_deep_continuous.py",
        "c_ncsn/evaluation/eval_cifar10_config.py",
    ),
    "DLSM's score": Kind("score/cifar10_score_configs.py", "score/cifar10_score_configs.py"),
    "VP": Kind("vpsde", "vpsde", typed=("--config.model.beta_max=2.0",)),
    "sub-VP": Kind("subvpsde", "subvpsde", typed=("--config.model.beta_max=2.0",)),
    "another size": Kind(typed=("--config.model.nf=8", "--config.model.ch_mult=(1,2)")),
    "centred": Kind(typed=("--config.data.centered=True",)),
    "class-conditional": Kind(typed=("--config.model.num_classes=10",), by_class=True),
    "classifier": Kind(
        "classifier/cifar10_classifier_resnet18_cond_configs.py",
        "eval/cifar10/eval_cifar10_configs.py",
        typed=("--config.classifier.nf=8", "--config.classifier.model=resnet_small_cond"),
        by_class=True,
        of_classifier=True,
    ),
}
# Another SDE is another file: where it is only typed, a command refuses "VP read as VE".
OTHER_SDE = """
from configs import common


def get_config():
    config = common.qc("u_ncsn", common.CIFAR10)
    config.training.sde = "{}"
    return config
"""
# Command -> flags; `by_class` commands are of samples with classes.
SCORE = {
    "NLL": "run_lib_evaluation_nll.py --calculate --read --bs 5 --atol 0.5 --rtol 0.5",
    "Asym": "run_lib_evaluation_asym.py --calculate --read --bs 5 --nl 2",
}
SAMPLES = {
    "PC": "run_lib_sampling.py --bs 2",
    "ODE": "run_lib_sampling.py --ode --bs 2",
    "heun": "run_lib_sampling.py --sampler heun --steps 2 --bs 2",
}
WHOLE = {"encode": "run_lib_evaluation_fidis.py --encode --encode_dataset --fidis --nfe --bs 4"}
BY_CLASS = {"encode": "run_lib_evaluation.py --stat --latent --fidis --nfe --bs 4"}


def file_of(name, here):
    """The configuration file `name`; that of another SDE is written."""
    if not name.endswith("sde"):
        return f"{tiny.ROOT}/configs/{name}"
    (here / f"{name}.py").write_text(OTHER_SDE.format(name))
    return f"{name}.py"


@pytest.mark.parametrize("name", KINDS)
def test_every_command_after_every_training(tmp_path, name):
    kind = KINDS[name]
    if kind.of_classifier:
        line = f"main.py --config {tiny.ROOT}/configs/{KINDS['U'].training} --workdir S"
        works(line, tmp_path, ["--config.model.nf=8", *TRAIN])
    own = f"main.py --config {file_of(kind.training, tmp_path)} --workdir W"
    restore = " --restore results/S/checkpoints/checkpoint.pth" if kind.of_classifier else ""
    own += f" --model classifier{restore}" if kind.of_classifier else ""
    first = [flag for flag in TRAIN if not kind.of_classifier or ".model." not in flag]
    works(own, tmp_path, [*first, *kind.typed])
    evaluation = f"--config {file_of(kind.evaluation, tmp_path)} --workdir W"
    extra = [*CPU, *SMALL, "--config.eval.num_samples_all=4"]
    commands = {} if kind.of_classifier else dict(SCORE)
    commands |= {sampler: line + restore for sampler, line in SAMPLES.items()}
    commands |= BY_CLASS if kind.by_class else WHOLE
    for line in commands.values():
        works(f"{line} {evaluation}", tmp_path, [*extra, *(LOOSE if "--ode" in line else [])])
    # Training goes on without a repetition, but for what is a training's own.
    more = [*CPU, "--config.training.n_iters=3", "--config.training.snapshot_freq=1"]
    works(f"{own} --bs 2", tmp_path, more)
    recorded = json.loads((tmp_path / "results/W/metrics.json").read_text())
    for entry, content in recorded.items():
        settings = content["settings"]
        assert {"checkpoint", "ema"} <= settings.get("samples", settings).keys(), entry
    other = "vesde" if "VP" in name else "vpsde"
    for field, value in (("model.nf", 16), ("training.sde", other)):
        flag = f"--config.{field}={value}"
        refused(f"{SAMPLES['heun']}{restore} {evaluation}", tmp_path, [*extra, flag], field)


@pytest.mark.parametrize(
    ("trained", "read_as", "field"),
    [
        ("C", "u_ncsn", "model.energy"),
        ("VP", "qc_ncsn", "training.sde"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(tmp_path, trained, read_as, field):
    """By sampling, likelihood, asymmetry, and the training of a classifier against it."""
    kind = KINDS[trained]
    config = file_of(kind.training, tmp_path)
    works(f"main.py --config {config} --workdir W", tmp_path, [*TRAIN, *kind.typed])
    evaluation = f"--config {QC.format(tiny.ROOT, read_as)} --workdir W"
    for line in (*SAMPLES.values(), *SCORE.values()):
        refused(f"{line} {evaluation}", tmp_path, CPU, field)
    classifier = KINDS["classifier"].training
    line = f"main.py --config {tiny.ROOT}/configs/{classifier} --model classifier --workdir V"
    refused(f"{line} --restore results/W/checkpoints/checkpoint.pth", tmp_path, CPU, field)


def test_a_start_from_another_kind(tmp_path):
    """An energy may start from a score model's weights; VE may not start from VP's."""
    restore = "--restore results/W/checkpoints/checkpoint.pth"
    line = f"main.py --bs 2 --config {tiny.ROOT}/configs/{{}} --workdir {{}}"
    works(line.format(KINDS["U"].training, "W"), tmp_path, TRAIN)
    more = [*CPU, "--config.training.n_iters=3", "--config.training.snapshot_sampling=False"]
    works(f"{line.format(KINDS['C'].training, 'C')} {restore}", tmp_path, more)
    again = f"{line.format(KINDS['U'].training, 'V')} {restore}"
    refused(again, tmp_path, [*CPU, "--config.training.n_iters=2"], "n_iters")
    assert not (tmp_path / "results/V").exists()
    vp = f"main.py --bs 2 --config {file_of('vpsde', tmp_path)} --workdir VP"
    works(vp, tmp_path, [*TRAIN, *KINDS["VP"].typed])
    restore = "--restore results/VP/checkpoints/checkpoint.pth"
    refused(f"{line.format(KINDS['U'].training, 'V')} {restore}", tmp_path, more, "training.sde")


# ---------------------------------------------------------------- every file with every command


def configuration(path):
    spec = importlib.util.spec_from_file_location("configuration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def structure(path):
    """What tells configurations apart for the commands: sections, fields, and kinds."""
    config = configuration(path)
    fields = [f"{s}.{n}" for s in config if isinstance(config[s], ConfigDict) for n in config[s]]
    kinds = config.model.name, config.model.energy, config.sampling.method
    return (*sorted(fields), *map(str, kinds))


REPRESENTATIVES = {structure(path): path for path in reversed(CONFIGS)}
COMMANDS = [
    "main.py",
    "main.py --model classifier",
    *SAMPLES.values(),
    *SCORE.values(),
    *WHOLE.values(),
    *BY_CLASS.values(),
    "run_lib_evaluation_cas.py --setup real",
]


def small(path):
    """Flags that make a configuration small, of the fields that it has."""
    config = configuration(path)
    wanted = {
        "device": "cpu", "data.cache": "cache", "model.nf": 4, "model.ch_mult": "(1,)",
        "model.num_res_blocks": 1, "model.attn_resolutions": "()", "model.num_scales": 3,
        "model.sigma_min": 5.0, "training.batch_size": 2, "training.n_iters": 1,
        "training.snapshot_sampling": False, "eval.num_samples": 2, "eval.num_samples_all": 2,
        "eval.num_divisions": 1, "eval.features": "classifier", "eval.noise_levels": 1,
        "sampling.atol": 0.5, "sampling.rtol": 0.5, "eval.atol": 0.5, "eval.rtol": 0.5,
        "compute.compile": False, "compute.precision": "fp32", "sampling.steps": 2,
    }  # fmt: skip
    if config.data.dataset in ("CIFAR10", "CIFAR100", "SVHN", "imagenet"):
        wanted["data.image_size"] = 8
    flags = []
    for name, value in wanted.items():
        section, _, field = name.rpartition(".")
        if field in (config[section] if section else config):
            flags.append(f"--config.{name}={value}")
    return flags


@pytest.mark.parametrize("path", REPRESENTATIVES.values(), ids=lambda p: "/".join(p.parts[-3:]))
def test_every_configuration_with_every_command(tmp_path, path):
    """Works, or a sentence; never a traceback."""
    for line in COMMANDS:
        line = re.sub(r"--bs \d+", "--bs 400", line)  # few batches of the demos' digits
        done = command(f"{line} --config {path} --workdir W", tmp_path, small(path))
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 0 or "Error: " in done.stderr
