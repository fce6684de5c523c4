"""Every command that evaluates samples, as typed: encoding, FID and IS, P/R/D/C, both papers'."""

import functools
import json

import commands
import numpy as np
import pytest
import torch
from commands import ROOT, refused, works
from drawn import draw

import run_lib_evaluation  # noqa: F401 (imported here, the forks need not)
from evaluation import LABELS
from metrics import feature_classifier, frechet, kid, prdc
from storage.files import load_npz, save_npz

FIDIS = (
    f"run_lib_evaluation_fidis.py --config {ROOT}/configs/qc_ncsn/evaluation/eval_cifar10_config"
)
DLSM = f"run_lib_evaluation.py --config {ROOT}/configs/eval/cifar10/eval_cifar10_configs.py"
SMALL = [
    "--config.device=cpu",
    f"--config.data.image_size={commands.IMAGE_SIZE}",
    "--config.eval.features=classifier",
]
QC = [*SMALL, "--config.eval.num_samples=45"]
BY_CLASS = [*SMALL, "--config.eval.num_samples=110", "--config.eval.num_samples_all=100"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """More training images than the other tests need, and less training of the features."""
    monkeypatch.setitem(commands.COUNTS, "train", 60)
    briefly = functools.partial(feature_classifier.train_small_classifier, steps=3)
    monkeypatch.setattr(feature_classifier, "train_small_classifier", briefly)


def qc(here, **changes):
    """A workdir with 45 samples in 10 divisions, and one with as many ODE samples."""
    draw(here / "results/W/eval_sampling", 10, 45, 2, **changes)
    ode = {"sampling": {"method": "ode"}}
    return draw(here / "results/W/eval_sampling_ode", 10, 45, 2, **{**ode, **changes})


def by_class(here, **changes):
    """A workdir with 110 samples of 10 classes."""
    return draw(here / "results/W/eval_samples", 10, 110, 3, **changes)


def metrics(here):
    text = (here / "results/W/metrics.json").read_text()
    assert "NaN" not in text
    return json.loads(text)


# ---------------------------------------------------------------- QC


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("qc_ncsn", "cifar10"),
        *(
            pytest.param(kind, data, marks=pytest.mark.slow)
            for kind in ("u_ncsn", "c_ncsn", "qc_ncsn")
            for data in ("cifar10", "cifar100", "svhn", "imagenet")
            if (kind, data) != ("qc_ncsn", "cifar10")
        ),
    ],
)
def test_qc_as_typed(tmp_path, kind, data):
    qc(tmp_path)
    config = f"{ROOT}/configs/{kind}/evaluation/eval_{data}_config"
    line = f"run_lib_evaluation_fidis.py --config {config}.py --workdir W"
    typed = [*QC, "--config.eval.num_divisions=10"]
    works(f"{line} --bs 2500 --encode --encode_dataset", tmp_path, typed)
    assert "fid" in works(f"{line} --fidis", tmp_path, typed)
    assert "coverage" in works(f"{line} --prdc", tmp_path, typed)
    # ODE, by flag and by configuration; the real images' features stand already.
    works(f"{line} --ode --bs 7 --encode --fidis --nfe", tmp_path, typed)
    ode = line.replace("_config.py", "_config_ode.py")
    assert "Mean NFE" in works(f"{ode} --prdc --nfe", tmp_path, typed)
    found = metrics(tmp_path)
    assert found.keys() == {"fid_is", "prdc", "fid_is_ode", "prdc_ode", "nfe_ode"}
    settings = found["fid_is"]["settings"]
    assert settings["features"].startswith("classifier-")
    assert (settings["generated"], settings["real"]) == (45, 60)
    assert settings["samples"]["checkpoint_step"] == 70
    assert found["prdc_ode"]["settings"]["nearest_k"] == 3
    # 5 samples in the first five divisions, 4 in the others.
    assert found["nfe_ode"]["nfe"] == pytest.approx(20 * (5 * 15 + 4 * 40) / 45)


def test_features_keep_the_order_of_the_samples(tmp_path):
    images = qc(tmp_path)
    works(f"{FIDIS}.py --workdir W --ode --bs 3 --encode", tmp_path, QC)
    stat = load_npz(tmp_path / "results/W/stat_ode/generated_stat.npz", "pool_3", "logit", "meta")
    cache = next((tmp_path / "data/cache").glob("*-features.pth"))
    network = feature_classifier._small_classifier(3, 10).eval()
    network.load_state_dict(torch.load(cache, weights_only=True)["model"])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    with torch.no_grad():
        pool = network[0](x)
        np.testing.assert_allclose(stat["pool_3"], pool, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stat["logit"], network[1](pool), rtol=1e-4, atol=1e-5)
    assert json.loads(str(stat["meta"]))["samples"]["seed"] == 42


@pytest.mark.parametrize("place", ["flag", "results"])
def test_published_features_are_read_as_they_are(tmp_path, place):
    """Neither side says what made it; both count as Inception's of December 2015."""
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(size=(n, 2048)).astype(np.float32) for n in (30, 20))
    logit = rng.normal(size=(20, 1008)).astype(np.float32)
    path = tmp_path / {"flag": "some.npz", "results": "results/cifar10_stats.npz"}[place]
    save_npz(path, pool_3=real, logit=rng.normal(size=(30, 1008)))
    save_npz(tmp_path / "results/W/stat/generated_stat.npz", pool_3=fake, logit=logit)
    line = f"{FIDIS}.py --workdir W" + " --dataset_stat some.npz" * (place == "flag")
    said = works(f"{line} --fidis --prdc", tmp_path, QC)
    assert "inception-2015-12-05" in said
    assert "--fidis of 20 samples" in said  # published numbers are of more
    found = metrics(tmp_path)
    assert found["fid_is"]["fid"] == pytest.approx(frechet.frechet_distance(real, fake))
    expected = prdc.precision_recall_density_coverage(real, fake)
    assert {name: found["prdc"][name] for name in expected} == pytest.approx(expected)


def test_kid_by_its_flag(tmp_path):
    """One entry of the table: flag, printed table, record and the report's label."""
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(size=(n, 64)).astype(np.float32) for n in (30, 20))
    stat = tmp_path / "results/W/stat"
    for name, features in (("dataset_stat", real), ("generated_stat", fake)):
        save_npz(stat / f"{name}.npz", pool_3=features, logit=features)
    line = f"{FIDIS}.py --workdir W --kid"
    assert "kid_subset_size is 1000" in works(line, tmp_path, QC)
    assert metrics(tmp_path)["kid"]["settings"]["kid_subset_size"] == 20
    small = [*QC, "--config.eval.kid_subset_size=15"]
    said = works(line, tmp_path, small)
    assert said.splitlines()[-2].split() == ["kid", "kid_std"]
    expected = kid.kernel_inception_distance(real, fake, subset_size=15)
    del expected["kid_subset_size"]
    found = metrics(tmp_path)["kid"]
    assert {name: found[name] for name in expected} == expected
    assert found["settings"]["kid_subset_size"] == 15
    assert LABELS["kid"] == "KID ↓"


def test_a_metric_that_cannot_be_taken_keeps_no_other_from_being_printed(tmp_path):
    """One set is too small for P/R/D/C, but not for FID and KID."""
    features = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    for name in ("dataset_stat", "generated_stat"):
        save_npz(tmp_path / f"results/W/stat/{name}.npz", pool_3=features, logit=features)
    refused(f"{FIDIS}.py --workdir W --prdc --fidis --kid", tmp_path, QC, "prdc")
    assert metrics(tmp_path).keys() == {"fid_is", "kid"}


def test_qc_mistakes_get_a_sentence(tmp_path):
    qc(tmp_path)
    line = f"{FIDIS}.py --workdir W"
    refused(line, tmp_path, QC, "Nothing was asked for", "--encode")
    refused(f"{line} --ode --prdc", tmp_path, QC, "stat_ode", "--encode")
    refused(f"{line} --stat", tmp_path, QC, "samples with classes")
    refused(f"{line} --fidis --mode class", tmp_path, QC, "samples with classes")
    refused(f"{line} --encode --bs 0", tmp_path, QC, "--bs is 0")
    other = [*QC, "--config.eval.features=vgg"]
    refused(f"{line} --encode", tmp_path, other, "config.eval.features")
    refused(
        f"{line} --encode", tmp_path, [*QC, "--config.eval.num_samples=90"], "division 9 has 4 of 9"
    )
    refused(f"{line} --encode --workdir none", tmp_path, QC, "none does not exist", "holds W")
    assert not (tmp_path / "results/none").exists()
    works(f"{line} --encode", tmp_path, QC)
    refused(f"{line} --fidis", tmp_path, QC, "no features", "--encode_dataset")
    refused(f"{line} --fidis --dataset_stat none", tmp_path, QC, "--dataset_stat")
    works(f"{line} --encode_dataset", tmp_path, QC)
    real = tmp_path / "results/W/stat/dataset_stat.npz"
    narrow = {**load_npz(real, "logit", "meta"), "pool_3": np.zeros((9, 3), np.float32)}
    save_npz(tmp_path / "narrow.npz", **narrow)
    refused(f"{line} --fidis --dataset_stat narrow.npz", tmp_path, QC, "3 wide", "128")
    assert not (tmp_path / "results/W/metrics.json").exists()


# ---------------------------------------------------------------- DLSM


@pytest.mark.parametrize(
    ("data", "classes"), [("cifar10", 10), pytest.param("cifar100", 100, marks=pytest.mark.slow)]
)
def test_dlsm_as_typed(tmp_path, monkeypatch, data, classes):
    monkeypatch.setitem(commands.COUNTS, "train", 6 * classes)
    config = f"{ROOT}/configs/eval/{data}/eval_{data}_configs.py"
    network = {"cifar10": "resnet18", "cifar100": "resnet34"}[data]
    workdir = f"classifier_{data}_ours_{network}_cond"
    root = tmp_path / "results" / workdir
    images = draw(root / "eval_samples", classes, 6 * classes, 4)
    few = [*SMALL, f"--config.eval.num_samples={6 * classes}"]
    few.append(f"--config.eval.num_samples_all={5 * classes}")
    line = f"run_lib_evaluation.py --config {config} --workdir {workdir}"
    works(f"{line} --stat --latent --fidis --prdc --mode full", tmp_path, few)

    names = "batch", "size", "start", "pool_3", "logit"
    stat = load_npz(root / "stat/stat.npz", *names)
    assert stat["batch"].shape == (6 * classes, 8, 8, 3)
    assert stat["batch"].dtype == np.uint8
    assert stat["size"].tolist() == [6] * classes
    assert stat["start"].tolist() == list(range(0, 6 * classes, 6))
    train = next(commands.made_up(data.upper())(None, "train").blocks)
    np.testing.assert_array_equal(
        stat["batch"][stat["start"][3] : stat["start"][4]],
        train.images[train.labels == 3].transpose(0, 2, 3, 1),
    )
    latents = [
        load_npz(root / f"latent/{label}/samples_{index}_latent.npz", "pool_3", "logits")
        for label in range(classes)
        for index in range(2)
    ]
    assert latents[1]["logits"].shape == (2, classes)
    fake = np.concatenate([latent["pool_3"] for latent in latents]).reshape(classes, 6, -1)[:, :5]
    assert len(images) == 6 * classes

    works(f"{line} --fidis --prdc --nfe --mode class", tmp_path, few)
    found = json.loads((root / "metrics.json").read_text())
    assert found.keys() == {"fid_is", "prdc", "fid_is_class", "prdc_class", "nfe"}
    assert found["fid_is"]["settings"]["generated"] == 5 * classes
    whole = fake.reshape(5 * classes, -1)
    assert found["fid_is"]["fid"] == pytest.approx(
        frechet.frechet_distance(stat["pool_3"], whole), rel=1e-6
    )
    real = stat["pool_3"].reshape(classes, 6, -1)
    each = [frechet.frechet_distance(*pair) for pair in zip(real, fake)]
    assert found["fid_is_class"]["fid"] == pytest.approx(np.mean(each), rel=1e-6)
    for name, columns in (("fid_is", 3), ("prdc", 5)):
        lines = (root / f"{name}.txt").read_text().splitlines()
        assert lines[0].startswith("# features classifier-")
        table = [row.split() for row in lines if not row.startswith("#")]
        assert {len(row) for row in table} == {columns}
        assert [row[0] for row in table] == ["class", *map(str, range(classes)), "mean"]
    fids = np.loadtxt(root / "fid_is.txt", skiprows=3, max_rows=classes)[:, 1]
    np.testing.assert_allclose(fids, each, rtol=1e-4)


def test_latents_are_made_only_where_they_are_missing(tmp_path):
    by_class(tmp_path)
    line = f"{DLSM} --workdir W --latent"
    works(line, tmp_path, BY_CLASS)
    files = sorted((tmp_path / "results/W/latent").rglob("*.npz"))
    stamps = [path.stat().st_mtime_ns for path in files]
    whole = files[7].read_bytes()
    files[7].unlink()
    works(f"{DLSM} --workdir W --stat", tmp_path, BY_CLASS)
    refused(f"{DLSM} --workdir W --fidis", tmp_path, BY_CLASS, "class 1 has 9 of 11", "--latent")
    works(line, tmp_path, BY_CLASS)
    again = [path.stat().st_mtime_ns for path in files]
    assert [a != b for a, b in zip(stamps, again)] == [i == 7 for i in range(len(files))]
    assert files[7].read_bytes() == whole
    by_class(tmp_path, classifier_weights="another")
    refused(line, tmp_path, BY_CLASS, "latent.npz")


def test_dlsm_mistakes_get_a_sentence(tmp_path):
    by_class(tmp_path)
    line = f"{DLSM} --workdir W"
    for flag in ("--encode", "--fidis --dataset_stat x"):
        refused(f"{line} {flag}", tmp_path, BY_CLASS, "for samples without classes")
    works(f"{line} --stat --latent", tmp_path, BY_CLASS)
    many = [*BY_CLASS, "--config.eval.num_samples_all=120"]
    refused(f"{line} --fidis", tmp_path, many, "config.eval.num_samples_all", "class 0")
    few = [*BY_CLASS, "--config.eval.num_samples_all=30"]
    refused(f"{line} --prdc --mode class", tmp_path, few, "Class 0: There are 3 generated")
    assert not (tmp_path / "results/W/prdc.txt").exists()
