"""Every DLSM command of the published README, as typed, from training to CAS."""

import json

import numpy as np
import pytest
import torch
from commands import IMAGE_SIZE, ROOT, TINY, refused, works

import run_lib_cas  # noqa: F401 (imported here, the forks need not)
from storage.files import load_npz

TRAIN = [
    *TINY,
    "--config.training.batch_size=3",
    "--config.training.n_iters=2",
    "--config.training.snapshot_freq=1",
    "--config.training.log_freq=1",
    "--config.training.snapshot_sampling=False",
]
PAIRS = {"cifar10": (10, "resnet18_cond"), "cifar100": (100, "resnet34_cond")}


def count_samples(root, classes):
    """The number of samples of each class, after a look at their form."""
    counts = []
    for label in range(classes):
        paths = sorted((root / "eval_samples" / str(label)).glob("samples_*.npz"))
        arrays = [load_npz(path, "samples")["samples"] for path in paths]
        assert all(a.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3) for a in arrays)
        assert all(a.dtype == np.uint8 for a in arrays)
        counts.append(sum(map(len, arrays)))
    return counts


@pytest.mark.parametrize("data", ["cifar10", pytest.param("cifar100", marks=pytest.mark.slow)])
def test_from_training_to_cas(tmp_path, data):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    classes, network = PAIRS[data]
    score, ours = f"score_{data}", f"classifier_{data}_ours_{network}"
    scaled = f"classifier_{data}_scale_{network}"
    score_path = f"results/{score}/checkpoints/checkpoint.pth"
    classifier_path = f"results/{ours}/checkpoints/checkpoint.pth"
    results = tmp_path / "results"

    config = f"--config configs/score/{data}_score_configs.py"
    works(f"main.py {config} --model score --workdir {score}", tmp_path, TRAIN)

    config = f"--config configs/classifier/{data}_classifier_{network}_configs.py"
    train = f"main.py {config} --model classifier --workdir {ours}"
    if data == "cifar10":
        train += f" --restore {score_path}"
    works(train, tmp_path, TRAIN)
    content = torch.load(tmp_path / classifier_path, weights_only=True)
    assert content["step"] == 2
    assert content["model"]["classifier.classifier.linear.weight"].shape == (classes, 512)

    few = [
        "--config.device=cpu",
        "--config.sampling.corrector=none",
        f"--config.eval.num_samples={2 * classes}",
    ]
    few.append("--config.eval.batch_size=2")
    config = f"--config configs/eval/{data}/eval_{data}_configs.py"
    sample = f"run_lib_sampling.py {config}"
    if data == "cifar10":
        works(f"{sample} --mode class --classid 5 --classidend 7 --workdir {ours}", tmp_path, few)
        assert count_samples(results / ours, classes) == [0, 0, 0, 0, 0, 2, 2, 0, 0, 0]
        works(f"{sample} --mode full --workdir {ours}", tmp_path, few)
        from_ours = f"--workdir {scaled} --restore_classifier {classifier_path}"
        works(f"{sample} --mode full {from_ours} --scale 10", tmp_path, few)
        folder = results / scaled / "eval_samples_scale10"
        assert len(list(folder.glob("*/samples_*.npz"))) == classes
        works(f"{sample} --mode class --classid 0 --scale 10 --workdir {ours}", tmp_path, few)
        assert (results / ours / "eval_samples_scale10/0/samples_0.npz").exists()
        loose = ["--config.sampling.atol=0.1", "--config.sampling.rtol=0.1"]
        ode = f"{sample} --mode class --classid 3 --ode --workdir {ours}"
        works(ode, tmp_path, few + loose)
        assert (results / ours / "eval_samples_ode/3/samples_0.npz").exists()
    else:
        both = f"--restore {score_path} --restore {classifier_path}"
        works(f"{sample} --mode full --workdir {ours} {both}", tmp_path, few)
    assert count_samples(results / ours, classes) == [2] * classes

    config = f"--config configs/eval/{data}/eval_{data}_configs_cas.py"
    cas = f"run_lib_evaluation_cas.py {config} --workdir {ours} --setup"
    few = [*TRAIN, f"--config.eval.num_samples_all={2 * classes}"]
    output = works(f"{cas} ours", tmp_path, few)
    assert f"on {2 * classes} images of results/{ours}/eval_samples." in output
    works(f"{cas} real", tmp_path, few)
    metrics = json.loads((results / ours / "metrics.json").read_text())
    assert metrics.keys() == {"cas_ours", "cas_real"}
    assert 0 <= metrics["cas_ours"]["accuracy"] <= 1
    assert metrics["cas_ours"]["settings"]["network"] == "resnet50"
    assert (results / ours / "checkpoints_cas/ours/checkpoints/checkpoint.pth").exists()


def test_mistakes_get_a_sentence(tmp_path):
    """Before anything is written."""
    evaluation = f"{ROOT}/configs/eval/cifar10/eval_cifar10_configs"
    training = f"{ROOT}/configs/classifier/cifar10_classifier_resnet18_cond_configs.py"
    score = f"{ROOT}/configs/score/cifar10_score_configs.py"
    sample = f"run_lib_sampling.py --workdir W --config {evaluation}.py"
    cas = "run_lib_evaluation_cas.py --workdir W --config"
    for line, said in (
        (f"{sample} --mode class --classid 10", "--classid"),
        (f"{sample} --mode class --classid 5 --classidend 5", "--classidend"),
        (f"{sample} --classid 5", "--mode class"),
        (f"{sample} --restore a --restore b --restore_classifier c", "--restore"),
        (f"{sample}", "results/score_cifar10/checkpoints/checkpoint.pth"),
        (f"main.py --workdir W --config {training}", "--model classifier"),
        (f"main.py --workdir W --config {score} --model classifier", "--model score"),
        (f"main.py --workdir W --config {training} --model classifier", "score_cifar10/checkpoin"),
        (f"{cas} {evaluation}.py --setup ours", "CAS"),
        (f"{cas} {evaluation}_cas.py --setup base", "classifier_cifar10_base_resnet18_cond/sample"),
    ):
        refused(line, tmp_path, TINY, said)
        assert not (tmp_path / "results").exists(), line
