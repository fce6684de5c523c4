"""Every QC command of the published README, as typed, from training to --read."""

import json
import shutil

import golden
import numpy as np
import pytest
from commands import IMAGE_SIZE, ROOT, TINY, refused, works

from storage import checkpoints
from storage.files import load_npz

SETS = ["cifar10", "cifar100", "svhn", "imagenet"]
KINDS = [pytest.param("u_ncsn", marks=pytest.mark.slow), "c_ncsn", "qc_ncsn"]
TRAIN = [
    *TINY,
    "--config.training.n_iters=2",
    "--config.training.snapshot_freq=1",
    "--config.training.eval_freq=1",
    "--config.training.log_freq=1",
    "--config.training.snapshot_sampling=False",
]

UNTYPED = ["--config.device=cpu"]  # what training was told is not typed again


@pytest.mark.parametrize(
    "data", [SETS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SETS[1:])]
)
@pytest.mark.parametrize("kind", KINDS)
def test_from_training_to_read(tmp_path, kind, data):
    regulariser = "--balancing_fac 0.0001 --slices 2" if kind == "qc_ncsn" else ""
    # Random weights make an energy's flow stiff below σ = 10: it would take thousands of steps.
    shape = ["--config.model.sigma_min=10.0"] if kind == "c_ncsn" else []
    config = f"configs/{kind}/training/{data}_ncsnpp_deep_continuous.py"
    config_eval = f"--config {ROOT}/configs/{kind}/evaluation/eval_{data}_config"
    train = f"main.py --config {ROOT}/{config} {regulariser} --bs 2 --workdir W"
    works(train, tmp_path, TRAIN + shape)

    nll = f"run_lib_evaluation_nll.py {config_eval}.py --workdir W"
    loose = "--checkpoint_idx 2 --bs 2 --atol 0.1 --rtol 0.1"
    works(f"{nll} {loose} --calculate", tmp_path, UNTYPED)
    assert "bits/dim over 5 images" in works(f"{nll} --read", tmp_path, UNTYPED)

    asym = f"run_lib_evaluation_asym.py {config_eval}.py --workdir W"
    few = "--checkpoint_idx 2 --bs 2 --nl 2 --slices 2"
    works(f"{asym} {few} --calculate", tmp_path, UNTYPED)
    assert "over 2 noise levels" in works(f"{asym} --read", tmp_path, UNTYPED)

    sampling = f"run_lib_sampling.py {config_eval}.py --bs 2 --num_samples 5 --num_divisions 2"
    first = f"{sampling} --division_idx 0 --workdir W --checkpoint_idx 2"
    works(first, tmp_path, UNTYPED)
    loose = ["--config.sampling.atol=0.1", "--config.sampling.rtol=0.1"]
    works(f"{sampling} --division_idx 1 --workdir W --ode", tmp_path, UNTYPED + loose)
    root = tmp_path / "results/W"
    samples = load_npz(root / "eval_sampling_ode/1/samples_0.npz", "samples")["samples"]
    assert samples.shape[0] == 2
    shutil.rmtree(root / "eval_sampling_ode")  # its settings may differ from those that follow
    by_config = sampling.replace("_config.py", "_config_ode.py")
    works(f"{by_config} --division_idx 0 --workdir W", tmp_path, UNTYPED + loose)

    assert load_npz(root / "eval_sampling/0/samples_1.npz", "samples")["samples"].shape[0] == 1
    assert (root / "eval_sampling_ode/0/samples_1.npz").exists()
    assert (root / "asym/asym.png").stat().st_size > 1000
    metrics = json.loads((root / "metrics.json").read_text())
    assert metrics["nll"]["settings"]["checkpoint_step"] == 2
    assert np.isfinite(metrics["nll"]["bits_per_dim"])
    symmetric = metrics["asym"]["nasym"]
    assert abs(symmetric) < 1e-4 if kind == "c_ncsn" else symmetric != 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny QC model on CIFAR-10, trained for two steps."""
    here = tmp_path_factory.mktemp("trained")
    config = "configs/qc_ncsn/training/cifar10_ncsnpp_deep_continuous.py"
    works(f"main.py --config {ROOT}/{config} --bs 2 --workdir W", here, TRAIN)
    return here


EVAL = "--config {}/configs/qc_ncsn/evaluation/eval_cifar10_config.py --workdir W"


@pytest.mark.parametrize(
    ("metric", "more", "folder"),
    [("nll", "--atol 0.1 --rtol 0.1", "nll"), ("asym", "--nl 2", "asym/repeat_0")],
)
def test_a_calculation_does_only_what_is_missing(trained, metric, more, folder):
    """As after a kill half way: the files that stand are kept, and the mean is the same."""
    line = f"run_lib_evaluation.py {EVAL.format(ROOT)} --metric {metric}"
    works(f"{line} {more} --bs 2 --calculate", trained, UNTYPED)
    first = works(f"{line} --read", trained, UNTYPED)
    files = sorted((trained / "results/W" / folder).glob("*.npz"))
    assert len(files) == 3
    assert load_npz(files[-1], folder.split("/")[0].replace("nll", "bpd"))
    stamps = [path.stat().st_mtime_ns for path in files]
    whole = files[1].read_bytes()
    files[1].unlink()
    if metric == "nll":
        refused(f"{line} --read", trained, UNTYPED, "--calculate")
    works(f"{line} {more} --bs 2 --calculate", trained, UNTYPED)
    assert files[1].read_bytes() == whole
    again = [path.stat().st_mtime_ns for path in files]
    assert [a == b for a, b in zip(stamps, again)] == [True, False, True]
    assert works(f"{line} --read", trained, UNTYPED) == first


@pytest.mark.parametrize(("metric", "more"), [("nll", "--atol 0.1 --rtol 0.1"), ("asym", "--nl 2")])
def test_some_of_the_test_images_suffice(trained, metric, more):
    few = trained / "results" / f"few_{metric}"
    few.mkdir()
    (few / "checkpoints").symlink_to("../W/checkpoints")
    line = f"run_lib_evaluation.py {EVAL.format(ROOT).replace(' W', f' {few.name}')}"
    line += f" --metric {metric}"
    works(f"{line} {more} --num_images 3 --bs 2 --calculate", trained, UNTYPED)
    assert "3 images" in works(f"{line} --read", trained, UNTYPED)
    refused(f"{line} {more} --num_images 30 --bs 2 --calculate", trained, UNTYPED, "num_images")


def test_raw_and_averaged_weights_lie_side_by_side(trained):
    """The published command takes the raw weights, --ema the averaged ones."""
    line = f"run_lib_evaluation_nll.py {EVAL.format(ROOT)}"
    printed = {}
    for ema in ("", " --ema"):
        works(f"{line} --bs 2 --atol 0.1 --rtol 0.1 --calculate{ema}", trained, UNTYPED)
        printed[ema] = works(f"{line} --read{ema}", trained, UNTYPED)
    assert "raw weights" in printed[""]
    assert "EMA weights" in printed[" --ema"]
    metrics = json.loads((trained / "results/W/metrics.json").read_text())
    assert metrics["nll"]["settings"]["weights"] != metrics["nll_ema"]["settings"]["weights"]
    for name in ("nll", "nll_ema"):
        assert (trained / f"results/W/{name}/bpd_0.npz").exists()
        assert metrics[name]["settings"]["checkpoint"] == "checkpoint.pth"


def test_reading_takes_as_many_repeats_as_were_asked_for(trained):
    line = f"run_lib_evaluation_asym.py {EVAL.format(ROOT)} --nl 1 --bs 5 --ema --total_repeat 2"
    works(f"{line} --calculate", trained, UNTYPED)
    read = f"run_lib_evaluation_asym.py {EVAL.format(ROOT)} --ema --read"
    assert "2 repeats" in works(read, trained, UNTYPED)
    assert "1 repeats" in works(f"{read} --total_repeat 1", trained, UNTYPED)
    refused(f"{read} --total_repeat 3", trained, UNTYPED, "2 of 3 repeats")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run_lib_evaluation_nll.py {} --workdir none --read", "none does not exist"),
        ("run_lib_evaluation_nll.py {}", "--calculate or --read"),
        ("run_lib_evaluation.py {} --read", "--metric"),
        ("run_lib_evaluation_nll.py {} --calculate --workdir none", "checkpoint.pth"),
        ("run_lib_evaluation_asym.py {} --calculate --slices 0", "--slices"),
        ("run_lib_evaluation_asym.py {} --calculate --config.loss.estimator=best", "'best'"),
    ],
)
def test_mistakes_get_a_sentence(trained, line, said):
    refused(line.format(EVAL.format(ROOT)), trained, UNTYPED, said)
    assert not (trained / "results/none").exists()


@pytest.mark.parametrize(
    "name", ["official_qc_checkpoint.pth", "official_score_sde_checkpoint.pth"]
)
def test_a_published_file_in_and_qc_out(tmp_path, name):
    """The QC file has no step and starts at init_step; the score_sde one at its own."""
    entry = golden.manifest("qc")["train_steps"]["config"]["model"]
    path = golden.DIRECTORY / name
    start = checkpoints.read(path).get("step", 600000)
    config = "configs/qc_ncsn/training/cifar10_ncsnpp_deep_continuous.py"
    shape = [
        "--config.device=cpu",
        f"--config.data.image_size={IMAGE_SIZE}",
        f"--config.model.nf={entry['nf']}",
        f"--config.model.num_res_blocks={entry['num_res_blocks']}",
        "--config.model.attn_resolutions=(4,)",
        f"--config.training.n_iters={start + 1}",
        "--config.training.snapshot_sampling=False",
    ]
    line = f"main.py --config {ROOT}/{config} --balancing_fac 0.0001 --slices 2 --bs 2"
    printed = works(f"{line} --workdir W --restore {path}", tmp_path, shape)
    assert f"Restored {path} at step {start}" in printed
    content = checkpoints.read(tmp_path / "results/W/checkpoints/checkpoint.pth")
    assert content["step"] == start + 1
    assert content["ema"]["num_updates"] == 5
