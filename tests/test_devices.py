"""On a device that is not the CPU nothing is left behind, and no step waits for it."""

import collections

import elsewhere
import pytest
import torch
from commands import ROOT, TINY, start
from random_features import real_and_fake

from metrics import prdc
from storage import checkpoints

pytestmark = pytest.mark.slow
NETWORK = [*TINY, "--config.model.attn_resolutions=(4,)"]
TRAIN = [
    *NETWORK,
    "--config.training.batch_size=4",
    "--config.training.n_iters=4",
    "--config.training.log_freq=4",
    "--config.training.snapshot_freq=4",
    "--config.optim.warmup=0",
]
LOOSE = ["--config.sampling.atol=0.1", "--config.sampling.rtol=0.1"]


def run(line, cwd, extra):
    """Run a command on the other device; returns how often each line of code waited for it."""
    done = start(line, cwd, [*extra, "--config.device=meta"], prepare=elsewhere.install).wait()
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return waits(cwd)


def waits(cwd):
    """How often each line of code waited since the last call."""
    path = cwd / "waits.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return collections.Counter(lines)


def weights(cwd):
    """All but the biases of attention's keys, whose gradients are nothing but rounding."""
    model = checkpoints.read(cwd / "results/W/checkpoints/checkpoint.pth")["model"]
    return {name: value for name, value in model.items() if not name.endswith("NIN_1.b")}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("u_ncsn", []),
        ("u_ncsn", ["--config.training.microbatch=2", "--config.compute.channels_last=True"]),
        ("c_ncsn", []),
        ("qc_ncsn", ["--slices=2"]),
    ],
)
def test_score_models(tmp_path, kind, more):
    """Training has the CPU's results; likelihood, asymmetry and both samplers run."""
    (tmp_path / "cpu").mkdir()
    config = f"--config {ROOT}/configs/{kind}/training/cifar10_ncsnpp_deep_continuous.py"
    train = f"main.py {config} --workdir W"
    run(train, tmp_path, TRAIN + more)
    assert start(train, tmp_path / "cpu", TRAIN + more).wait().returncode == 0
    there, here = weights(tmp_path), weights(tmp_path / "cpu")
    # Four steps of Adam move a weight by up to 8e-4.
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)

    config = f"--config {ROOT}/configs/{kind}/evaluation/eval_cifar10_config.py --workdir W --bs 2"
    if kind != "c_ncsn":  # an untrained energy's flow is stiff, and takes minutes
        nll = f"run_lib_evaluation_nll.py {config} --bs 3 --atol 1 --rtol 1"
        run(f"{nll} --calculate", tmp_path, NETWORK)
    asym = f"run_lib_evaluation_asym.py {config} --bs 3 --nl 2 --slices 2"
    run(f"{asym} --calculate", tmp_path, NETWORK)
    sampling = f"run_lib_sampling.py {config} --num_samples 2 --num_divisions 1"
    run(sampling, tmp_path, NETWORK)
    run(f"{sampling} --ode", tmp_path, NETWORK + LOOSE)


def test_classifiers(tmp_path):
    """DLSM training, class-guided samples and the accuracy score of a classifier on them."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    name = "classifier_cifar10_ours_resnet18_cond"
    run("main.py --config configs/score/cifar10_score_configs.py --workdir S", tmp_path, TRAIN)
    train = "main.py --config configs/classifier/cifar10_classifier_resnet18_cond_configs.py"
    train += f" --model classifier --workdir {name} --restore results/S/checkpoints/checkpoint.pth"
    run(train, tmp_path, TRAIN)
    sample = "run_lib_sampling.py --config configs/eval/cifar10/eval_cifar10_configs.py --mode full"
    sample += f" --workdir {name} --restore results/S/checkpoints/checkpoint.pth"
    few = ["--config.eval.num_samples=20", "--num_scales=2"]
    run(sample, tmp_path, NETWORK + few)
    cas = "run_lib_evaluation_cas.py --config configs/eval/cifar10/eval_cifar10_configs_cas.py"
    few = ["--config.eval.num_samples_all=20"]
    run(f"{cas} --workdir {name} --setup ours", tmp_path, TRAIN + few)


@pytest.mark.parametrize("kind", ["u_ncsn", "qc_ncsn"])
def test_waits_do_not_grow_with_the_steps(tmp_path, kind):
    training, sampling = [], []
    for steps in (2, 9):
        place = tmp_path / str(steps)
        place.mkdir()
        counts = [
            f"--config.training.{name}={steps}" for name in ("n_iters", "log_freq", "snapshot_freq")
        ]
        config = f"--config {ROOT}/configs/{kind}/training/cifar10_ncsnpp_deep_continuous.py"
        scales = f"--config.model.num_scales={steps}"
        training.append(run(f"main.py {config} --workdir W", place, [*TRAIN, *counts, scales]))
        config = f"--config {ROOT}/configs/{kind}/evaluation/eval_cifar10_config.py"
        sample = f"run_lib_sampling.py {config} --workdir W --bs 2 --num_samples 2"
        counts = [
            scales,
            "--config.eval.num_divisions=1",
            f"--config.sampling.n_steps_each={steps}",
        ]
        sampling.append(run(sample, place, NETWORK + counts))
    assert training[0] == training[1]
    assert sampling[0] == sampling[1]


def test_distances(tmp_path, monkeypatch):
    """In several blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prdc, "BLOCK", 64)
    real, fake = real_and_fake(300, 200, 64)
    with elsewhere.Dispatch():
        there = prdc.precision_recall_density_coverage(real, fake, device=elsewhere.DEVICE)
    assert there == prdc.precision_recall_density_coverage(real, fake)
