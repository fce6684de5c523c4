"""The published DLSM commands as typed, from training to CAS, on small networks and mock data."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch

import datasets
import readers
from configs import common
from utils import Workdir, load_npz

TINY = {
    "device": "cpu",
    "model.nf": 8,
    "model.ch_mult": "(1,)",
    "model.num_res_blocks": 1,
    "model.attn_resolutions": "()",
    "model.num_scales": 2,
}
TRAINING = {
    "training.batch_size": 5,
    "training.n_iters": 2,
    "training.snapshot_freq": 1,
    "training.snapshot_sampling": False,
}
SAMPLES = {"sampling.corrector": "none", "eval.batch_size": 2}
PAIRS = {"cifar10": (common.CIFAR10, 10, 18), "cifar100": (common.CIFAR100, 100, 34)}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A directory where the repository's files lie, with results and data of its own."""
    for path in tiny.ROOT.iterdir():
        if path.suffix == ".py" or path.name in ("configs", "models"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mock_data(dataset, classes):
    """Random images in the cache, in place of the download."""
    rng = np.random.default_rng(0)
    data = common.base(dataset).data
    for split, count in (("train", 2 * classes), ("test", classes)):
        images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        block = readers.Block(images, np.arange(count) % classes)
        source = readers.Source((3, 32, 32), classes, iter([block]), [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(datasets.DATASETS, dataset, lambda data, split, s=source: s)
            datasets.load(data, split)


def type_command(command, fields):
    """Run a command as a user types it, with small networks and `fields`; return its output."""
    script, *arguments = shlex.split(command.removeprefix("python3 "))
    overrides = [f"--config.{name}={value}" for name, value in {**TINY, **fields}.items()]
    done = subprocess.run(
        [sys.executable, script, *arguments, *overrides],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def count_samples(workdir, classes):
    """The number of samples of each class, after a look at their form."""
    counts = []
    for label in classes:
        paths = sorted(Workdir(workdir).class_samples(label, ode=False).glob("samples_*.npz"))
        arrays = [load_npz(path, "samples")["samples"] for path in paths]
        assert all(a.dtype == np.uint8 and a.shape[1:] == (32, 32, 3) for a in arrays)
        counts.append(sum(map(len, arrays)))
    return counts


@pytest.mark.parametrize("name", PAIRS)
def test_from_training_to_cas(repository, name):
    dataset, classes, layers = PAIRS[name]
    mock_data(dataset, classes)
    score = f"score_{name}"
    ours = f"classifier_{name}_ours_resnet{layers}_cond"
    scaled = f"classifier_{name}_scale_resnet{layers}_cond"
    evaluation = f"--config configs/eval/{name}/eval_{name}_configs.py"
    per_class = 2 if name == "cifar10" else 1
    samples = SAMPLES | {"eval.num_samples": per_class * classes}

    type_command(
        f"python3 main.py --config configs/score/{name}_score_configs.py --model score "
        f"--workdir {score}",
        TRAINING,
    )
    assert Workdir(score).checkpoint(1).exists()

    train = (
        f"python3 main.py --config configs/classifier/{name}_classifier_resnet{layers}_cond"
        f"_configs.py --model classifier --workdir {ours}"
    )
    restore = f" --restore results/{score}/checkpoints/checkpoint.pth"
    type_command(train + (restore if name == "cifar10" else ""), TRAINING)
    content = torch.load(Workdir(ours).checkpoint(), weights_only=True)
    assert content["step"] == 2
    assert content["model"]["classifier.classifier.linear.weight"].shape == (classes, 512)

    sample = f"python3 run_lib_sampling.py {evaluation} --mode "
    if name == "cifar10":
        type_command(f"{sample}class --classid 5 --classidend 7 --workdir {ours}", samples)
        assert count_samples(ours, range(10)) == [0, 0, 0, 0, 0, 2, 2, 0, 0, 0]
        type_command(
            f"{sample}full --workdir {scaled} --scale 10 "
            f"--restore_classifier results/{ours}/checkpoints/checkpoint.pth",
            samples,
        )
        assert count_samples(scaled, range(classes)) == [per_class] * classes
        both = ""
    else:
        both = (
            f" --restore results/{score}/checkpoints/checkpoint.pth"
            f" --restore results/{ours}/checkpoints/checkpoint.pth"
        )
    type_command(f"{sample}full --workdir {ours}{both}", samples)
    assert count_samples(ours, range(classes)) == [per_class] * classes

    output = type_command(
        f"python3 run_lib_evaluation_cas.py "
        f"--config configs/eval/{name}/eval_{name}_configs_cas.py --workdir {ours} --setup ours",
        TRAINING | {"eval.num_samples_all": per_class * classes},
    )
    assert "CAS ours: accuracy" in output
    result = json.loads(Workdir(ours).metrics.read_text())["cas"]["ours"]
    assert 0 <= result["accuracy"] <= 1
    assert result["settings"]["network"] == "resnet50"
    assert result["settings"]["images"] == per_class * classes
    assert Workdir(ours).cas("ours").checkpoint().exists()
