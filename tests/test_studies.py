"""The studies of trained models: their commands, on made-up images, and their tables."""

import importlib
import re
import types

import numpy as np
import pytest
import tiny
import torch
from absl import flags
from commands import brief_features, start
from scipy import stats
from sklearn.naive_bayes import GaussianNB
from test_readers import write_idx

import run_lib
from configs.demo import digits_cfg
from configs.fashion_mnist import qc as qc_config
from evaluation import SAMPLE_METRICS
from models.trained import load_score
from readers.idx import read_idx
from storage.files import save_npz
from storage.workdir import Workdir
from studies import common, dlsm, qc, samplers
from utils import UserError

CPU = torch.device("cpu")


def test_means_spreads_and_paired_differences(capsys):
    u, other = (5.0, 5.2, 5.3), (4.9, 5.0, 5.2)
    results = {"exact": [{"NLL": 4.5}], "U": [{"NLL": x, "Asym": 0.0} for x in u]}
    results["QC"] = [{"NLL": x, "Asym": 0.0} for x in other]
    results["C"] = [{"NLL": 6.0, "Asym": 0.0}]  # of one seed, so without a difference
    common.print_seeds("model", results, reference="U")
    p = stats.ttest_rel(other, u).pvalue
    assert capsys.readouterr().out.strip().splitlines() == [
        "| model | seeds | NLL | Asym |",
        "| --- | --- | --- | --- |",
        "| exact | 1 | 4.5 |  |",
        "| U | 3 | 5.167 ± 0.15 | 0 ± 0 |",
        "| QC | 3 | 5.033 ± 0.15 | 0 ± 0 |",
        "| C | 1 | 6 | 0 |",
        f"| QC − U | 3 | -0.1333 ± 0.058 (p = {p:.2g}) |  |",
        "1 p-values; held: at 0.05 by Holm's test of all of them.",
    ]
    assert common.difference([27.0, 27.0], [33.0, 33.0]) == "6 ± 0"


def test_holms_test():
    """Holm 1979's steps: 0.01 ≤ 0.05/4 and 0.015 ≤ 0.05/3, but 0.03 > 0.05/2, and so 0.04."""
    assert common.holm([0.03, 0.01, 0.04, 0.015]) == 0.015
    assert common.holm([0.02, 0.03, 0.04]) == 0  # all at 0.05, none after correction
    assert common.holm([]) == 0


MOVES = (1.0, 0.15, 0.10), (2.0, 0.25, 0.09), (3.0, 0.3, 0.08)  # p is 0.034 and 0.004


def test_what_survives_holm_is_marked(capsys):
    """Of three, the smallest takes a third of the level and the next half: too much for them."""
    u = [{"a": x, "b": x, "c": x} for x in (1.0, 2.0, 3.0)]
    other = [{"a": x - y, "b": x - z, "c": x - y} for x, y, z in MOVES]
    common.print_seeds("model", {"U": u, "V": other}, reference="U")
    *_, row, note = capsys.readouterr().out.strip().splitlines()
    assert note.startswith("3 p-values")
    assert ["held" in cell for cell in row.split(" | ")[2:]] == [False, True, False]


# ---------------------------------------------------------------- Fashion-MNIST


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a data root of 40 training and 12 test images."""
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "data/fashion_mnist", train_count=40, test_count=12)
    for study in (qc, dlsm):
        monkeypatch.setattr(study, "TRAIN_IMAGES", 30)
    return tmp_path


def start_of(place):
    """A score model's checkpoint."""
    run_lib.train(tiny.config(place / "cache", training__n_iters=2), "start")
    return Workdir("start").checkpoint()


NUMBERS = {
    "nll_ema": {"bits_per_dim": 5.0},
    "asym_ema": {"asym": 2.0, "nasym": 0.5},
}
VARIANTS = "_heun", "_churn", "_dpmpp_2m_sde", "_dpmpp_2m_sde_scale3", ""  # pc


@pytest.fixture
def lines(monkeypatch):
    """The list of commands of a study, which leave numbers as if they had been run."""
    noted = []

    def run(script, config, workdir, *own):
        noted.append((script, config, workdir, *own))
        workdir = Workdir(workdir)
        if workdir.metrics.exists():
            return
        sampled = dict.fromkeys(("fid", "precision", "recall", "density", "coverage"), 1.0)
        entries = [
            f"{metric}{mode}{variant}"
            for metric in ("fid_is", "prdc")
            for mode in ("", "_class")
            for variant in VARIANTS
        ]
        workdir.record(**NUMBERS, **dict.fromkeys(entries, sampled))
        save_npz(workdir.asym(0, ema=True), times=np.arange(3.0), nasym=np.ones(3))
        for label in range(10):
            for variant in VARIANTS[2:4]:
                path = workdir.latents(label, variant) / "samples_0_latent.npz"
                save_npz(path, logits=np.eye(10)[[label, 0]])

    monkeypatch.setattr(common, "run", run)
    return noted


def check_flags(lines):
    """Scripts, configurations and flags are there, and so are the fields that they override."""
    defined = "".join(path.read_text() for path in tiny.ROOT.glob("*.py"))
    known = {*re.findall(r'DEFINE_\w+\(\s*"(\w+)"', defined)}
    known |= {metric.flag for metric in SAMPLE_METRICS}
    for script, path, _, *own in lines:
        assert (tiny.ROOT / script).is_file()
        module = path.removesuffix(".py").replace("/", ".")
        config = importlib.import_module(module).get_config()
        for flag in own:
            name = flag.removeprefix("--").partition("=")[0]
            if name.startswith("config."):
                *_, section, field = name.split(".")
                assert field in (config if section == "config" else config[section]), flag
            else:
                assert name in known, flag


@pytest.mark.slow
def test_the_qc_study_runs_its_commands(place, lines, monkeypatch, capsys):
    given = {"restore": start_of(place), "variants": list(qc.VARIANTS), "factors": [0.1, 0.3]}
    given |= {"seeds": [0, 1], "steps": 3, "batch": 4, "split": "test", "images": 5}
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**given))
    qc.main()
    check_flags(lines)
    trained = [line for line in lines if line[0] == "main.py"]
    assert len({line[2] for line in trained}) == len(trained) == 2 * (1 + 3 * 2)
    assert all("--config.training.n_iters=5" in line for line in trained)
    assert all(line[2].startswith("studies/qc_test_3_5/") for line in lines)
    assert Workdir("studies/qc_test_3_5").root.joinpath("frontier.png").is_file()
    row = "| QC-paper-4, 0.3 | 2 | 5 ± 0 | 2 ± 0 | 0.5 ± 0 | 1 ± 0 |"
    assert row in capsys.readouterr().out


def test_the_dlsm_study_runs_its_commands(place, lines, monkeypatch, capsys):
    given = {"restore": start_of(place), "seeds": [0, 1], "steps": 7, "batch": 4}
    given |= {"methods": list(dlsm.METHODS), "scales": [1.0, 3.0]}
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**given))
    monkeypatch.setattr(dlsm, "with_labels", lambda *_: 2)
    dlsm.main()
    check_flags(lines)
    printed = capsys.readouterr().out
    for name in dlsm.METHODS:  # the class asked for is seen in all of class 0, in half of others
        row = "1 | 0.55 | 1 |" if name == dlsm.ONE_SEED else "2 | 0.55 ± 0 | 1 ± 0 |"
        assert printed.count(f"| {name} | {row}") == 2
    drawn = [line for line in lines if line[0] == "run_lib_sampling.py"]
    assert len({line[2] for line in drawn}) == 7
    assert len(drawn) == 14
    ce, ours, weighted, cfg, *_ = (line for line in lines if line[0] == "main.py")
    assert all("--config.training.n_iters=7" in line for line in (ce, ours, weighted))
    assert "--config.training.n_iters=9" in cfg  # the score model has two
    for flag in ("--config.model.weighting_dlsm=1", "--config.model.coef=0.02"):
        assert [flag in line for line in (ce, ours, weighted)] == [False, False, True]
    assert all("--config.data.root=results/studies/train-30" in line for line in lines)
    assert Workdir("studies/dlsm_7_30").root.joinpath("frontier.png").is_file()


def test_a_part_of_the_data(place):
    data = qc_config.get_config().data
    roots = [common.part_of_fashion_mnist(data, name, 4) for name in common.SPLITS]
    for root, split, begin in zip(roots, ("train", "t10k", "t10k"), (0, 0, 8)):
        for part in ("train", "t10k"):
            name = f"fashion_mnist/{part}-images-idx3-ubyte"
            real = read_idx(place / "data" / name, (28, 28))
            kept = real[begin : begin + 4] if part == split else real
            assert np.array_equal(read_idx(root / name, (28, 28)), kept)
    for count in (13, 0):
        with pytest.raises(UserError, match="images"):
            common.part_of_fashion_mnist(data, "validation", count)


def test_a_score_model_gets_labels(place):
    """Without one it is the same score."""
    source, target = start_of(place), place / "labelled.pth"
    config = digits_cfg.get_config()
    config.update_from_flattened_dict(tiny.changes(place / "cache"))
    assert dlsm.with_labels(config, source, target) == 2
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.3, 0.6])
    before = load_score(tiny.config(place / "cache"), source, CPU)
    after = load_score(config, target, CPU)
    conditioned = after.score.conditioned_on(torch.tensor([3, 4]))
    assert torch.equal(before.score(x, t), after.score(x, t))
    assert not torch.equal(before.score(x, t), conditioned(x, t))
    assert after.loaded.step == 2


# ---------------------------------------------------------------- digits


def quick():
    """In place of the networks that measure quality, what is trained in no time."""
    brief_features()
    samplers.recogniser = lambda train: GaussianNB().fit(
        samplers.flatten(train.images), train.labels
    )


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A directory with a trained score model, "U"."""
    monkeypatch.chdir(tmp_path)
    run_lib.train(tiny.config("cache", training__n_iters=2, model__init_scale=1.0), "U")
    return tmp_path


@pytest.mark.slow
def test_quality_of_samplers(digits):
    line = "studies/samplers.py --workdir U --samplers heun pc ode --nfe 5 3 --seeds 0 1"
    more = {"eval__num_samples": 12, "eval__batch_size": 12, "sampling__rtol": 0.1}
    done = start(line, digits, tiny.arguments("cache", **more), prepare=quick).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if " | 2 | " in line]
    assert [row[0] for row in rows] == ["| heun, 2 steps", "| heun, 3 steps", "| PC", "| RK45"]
    assert [row[2] for row in rows[:3]] == ["3 ± 0", "5 ± 0", "6 ± 0"]
