"""The studies of Fashion-MNIST: their commands, on made-up images, and what they take from them."""

import gzip
import importlib
import re
import subprocess

import numpy as np
import pytest
import tiny
import torch

import run_lib
from benchmarks import studies, study_dlsm, study_qc
from configs.demo import digits_cfg
from evaluation import SAMPLE_METRICS
from storage import checkpoints
from storage.files import save_npz
from storage.trained import load_score
from storage.workdir import Workdir
from training.score import ScoreTraining
from utils import UserError


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a data root of 40 training and 12 test images."""
    monkeypatch.chdir(tmp_path)
    rng, folder = np.random.default_rng(0), tmp_path / "data/fashion_mnist"
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 12)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


class Recorded:
    """Notes commands, and leaves numbers in their workdirs as if they had been run."""

    def __init__(self):
        self.lines = []

    def __call__(self, script, config, workdir, *flags):
        self.lines.append((script, config, workdir, *flags))
        place = Workdir(workdir)
        if place.metrics.exists():
            return
        sampled = dict.fromkeys(("fid", "precision", "recall", "density", "coverage"), 1.0)
        samplers = ("heun", "dpmpp_2m_sde")
        entries = [
            f"{m}{c}_{s}" for m in ("fid_is", "prdc") for c in ("", "_class") for s in samplers
        ]
        place.record(**NUMBERS, **dict.fromkeys(entries, sampled))
        for label in range(10):
            path = place.latents(label, "dpmpp_2m_sde") / "samples_0_latent.npz"
            save_npz(path, logits=np.eye(10)[[label, 0]])
            path = place.class_samples(label, "dpmpp_2m_sde") / "samples_0.npz"
            save_npz(path, samples=np.full((4, 28, 28, 1), 25 * label, np.uint8))


NUMBERS = {
    "nll": {"bits_per_dim": 5.0},
    "asym": {"asym": 2.0, "nasym": 0.5},
    "cas_samples": {"accuracy": 0.5},
    "cas_real": {"accuracy": 0.75},
}


def check_flags(lines):
    """Scripts, configurations and flags are there, and so are the fields that they override."""
    defined = "".join(path.read_text() for path in tiny.ROOT.glob("*.py"))
    known = {*re.findall(r'DEFINE_\w+\(\s*"(\w+)"', defined)}
    known |= {metric.flag for metric in SAMPLE_METRICS}
    for script, path, _, *flags in lines:
        assert (tiny.ROOT / script).is_file()
        module = path.removesuffix(".py").replace("/", ".")
        config = importlib.import_module(module).get_config()
        for flag in flags:
            name = flag.removeprefix("--").partition("=")[0]
            if name.startswith("config."):
                *_, section, field = name.split(".")
                assert field in (config if section == "config" else config[section]), flag
            else:
                assert name in known, flag


def start(place):
    """A score model's checkpoint."""
    run_lib.train(tiny.config(place / "cache", training__n_iters=2), "start")
    return Workdir("start").checkpoint()


def test_the_qc_study_runs_its_commands(place, monkeypatch, capsys):
    run = Recorded()
    monkeypatch.setattr(studies, "Commands", lambda flags, configs, root: run)
    words = "--steps 3 --images 5 --seeds 0 1 --samplers heun --factors 0.1 0.3".split()
    study_qc.main(study_qc.parse(["--restore", str(start(place)), *words]))
    trained = [line for line in run.lines if line[0] == "main.py"]
    assert len(trained) == 2 * (2 + 3 * 2)
    assert len({line[2] for line in trained}) == len(trained)
    check_flags(run.lines)
    assert all("--config.training.n_iters=5" in line for line in trained)
    for line in run.lines:
        assert line[2].startswith("studies/qc_test_3_5/")
        assert ("--config.model.energy=True" in line) == ("/C-" in line[2])
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert "| QC-paper-4, 0.3 | 2 | 5 ± 0 | 2 ± 0 | 0.5 ± 0 |" in printed
    assert "| heun | seeds | fid | precision | recall | density | coverage |" in printed


def test_the_dlsm_study_runs_its_commands(place, monkeypatch, capsys):
    run, made = Recorded(), []

    def commands(flags, configs, root):
        made.append(str(root))
        return run

    monkeypatch.setattr(studies, "Commands", commands)
    words = f"--restore {start(place)} --seeds 0 --steps 7 --train_images 30".split()
    study_dlsm.main(study_dlsm.parse(words))
    printed = re.sub(" +", " ", capsys.readouterr().out)
    rows = ("ce", "ce, scale 10", "DLSM + ce", "DLSM + 0.02 ce, w = 1")
    for name in (*rows, "CFG, w = 1", "CFG, w = 2"):
        assert f"| {name} | 1 | 1 |" in printed
    # CAS, and what is recognised: all of class 0, half of others.
    assert "| 0.5 | 0.55 |" in printed
    assert "| real training images | 1 | 0.75 |" in printed
    assert Workdir("studies/dlsm_7_30").figure("classes").is_file()
    workdir = "studies/dlsm_7_30/seed0/base"
    (axes,) = study_dlsm.draw_classes([("ce", workdir)], "dpmpp_2m_sde").axes
    shown = axes.images[0].get_array()
    assert shown.shape == (28, 10 * study_dlsm.EACH * 28)
    assert np.array_equal(shown[0, :: 28 * study_dlsm.EACH], 25 * np.arange(10))
    assert made == ["results/studies/train-30"]
    drawn = [line for line in run.lines if line[0] == "run_lib_sampling.py"]
    assert len({line[2] for line in drawn}) == len(drawn) == 6
    assert all(line[2].startswith("studies/dlsm_7_30/seed0/") for line in run.lines)
    ce, ours, weighted, cfg = (line for line in run.lines if line[0] == "main.py")
    steps = "--config.training.n_iters=7"
    assert all(steps in line for line in (ce, ours, weighted))
    assert "--config.training.n_iters=9" in cfg  # the score model has two
    for flag in ("--config.model.weighting_dlsm=1", "--config.model.coef=0.02"):
        assert [flag in line for line in (ce, ours, weighted)] == [False, False, True]
    check_flags(run.lines)


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (study_dlsm, "--steps 0"),
        (study_dlsm, "--train_images 0"),
        (study_dlsm, "--train_images -3"),
        (study_qc, "--steps 0"),
    ],
)
def test_studies_take_positive_numbers(place, study, words):
    with pytest.raises(UserError, match=r"expected a whole number of at least 1"):
        study.main(study.parse(["--restore", "START", *words.split()]))
    assert not (place / "results").exists()


def test_a_score_model_that_does_not_say_its_step_gets_the_configurations(place):
    path = start(place)
    content = checkpoints.read(path)
    del content["step"]
    torch.save(content, place / "without.pth")
    study_dlsm.with_labels(place / "without.pth", place / "labelled.pth")
    first = study_dlsm.cfg.get_config().training.init_step
    assert checkpoints.read(place / "labelled.pth")["step"] == first


def test_a_part_of_the_test_set(place):
    root = studies.part_of_test_set("data", "validation", 4)
    images = studies.read_idx(root / "fashion_mnist/t10k-images-idx3-ubyte", (28, 28))
    real = studies.read_idx(place / "data/fashion_mnist/t10k-images-idx3-ubyte.gz", (28, 28))
    assert np.array_equal(images, real[4:8])
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*-ubyte*")}
    assert len(stamps) == 4
    studies.part_of_test_set("data", "validation", 4)
    assert stamps == {path: path.stat().st_mtime_ns for path in root.rglob("*-ubyte*")}
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz holds 12 images, too few"):
        studies.part_of_test_set("data", "validation", 7)


def test_a_part_of_the_training_set(place):
    root = studies.part_of_training_set("data", 3) / "fashion_mnist"
    for stem, shape in (("images-idx3-ubyte", (28, 28)), ("labels-idx1-ubyte", ())):
        (path,) = root.glob(f"train-{stem}*")
        real = studies.read_idx(place / f"data/fashion_mnist/train-{stem}.gz", shape)
        assert np.array_equal(studies.read_idx(path, shape), real[:3])
        (path,) = root.glob(f"t10k-{stem}*")
        assert path.read_bytes() == (place / f"data/fashion_mnist/{path.name}").read_bytes()


def test_a_score_model_gets_labels(place):
    """Without one it is the same score, averages too; training goes on from its step."""
    source, target = start(place), place / "start.pth"
    study_dlsm.with_labels(source, target)
    config = tiny.config(place / "cache")
    labelled = digits_cfg.get_config()
    labelled.update_from_flattened_dict(tiny.changes(place / "cache"))
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.3, 0.6])
    for use_ema in (True, False):
        scores = [
            load_score(each, path, ScoreTraining(each, torch.device("cpu")).sde, "cpu", use_ema)
            for each, path in ((config, source), (labelled, target))
        ]
        (before, _), (after, loaded) = scores
        assert torch.equal(before(x, t), after(x, t))
        assert not torch.equal(before(x, t), after.conditioned_on(torch.tensor([3, 4]))(x, t))
        assert loaded.step == 2
    job = run_lib.train(labelled, "labelled", restore=target)
    began = checkpoints.read(target)["model"]["label_embedding.weight"]
    assert (job.model.label_embedding.weight != began).any(1).all()
    assert checkpoints.read(Workdir("labelled").checkpoint())["step"] == 8


def test_a_command_that_fails_stops_the_study(monkeypatch):
    asked = []

    def failing(line, check):
        asked.append(line[1:])
        return subprocess.CompletedProcess(line, 3)

    monkeypatch.setattr(subprocess, "run", failing)
    names = ["configs/demo/digits.py", "configs/demo/digits_cas.py"]
    flags = ["--config.eval.atol=1", "--config.loss.slices=2", "--config.cas.model=resnet50"]
    run = studies.Commands(flags, names, "there")
    with pytest.raises(SystemExit) as stop:
        run("main.py", names[0], "W", "--ode")
    assert stop.value.code == 3
    config = f"--config={tiny.ROOT}/configs/demo/digits.py"
    assert "--config.data.root=there" in asked[0]
    asked[0].remove("--config.data.root=there")
    assert asked == [[f"{tiny.ROOT}/main.py", config, "--workdir=W", "--ode", *flags[:2]]]
    with pytest.raises(UserError, match=r"has the field of --config\.training\.n_iter=3"):
        studies.Commands(["--config.training.n_iter=3"], names, "there")
    with pytest.raises(UserError, match=r"sets config\.training\.n_iters itself; give it --steps"):
        studies.Commands(["--config.training.n_iters=3"], names, "there")


def test_a_study_keeps_no_models_of_other_weights_or_flags(place):
    (place / "a.pth").write_bytes(b"a")
    (place / "b.pth").write_bytes(b"b")
    flags = ["--config.optim.lr=1", "--config.seed=2"]
    for _ in range(2):
        studies.begin("study", "a.pth", flags)
    studies.begin("study", "a.pth", flags[::-1])
    with pytest.raises(UserError, match=r"none\.pth cannot be read \(No such file"):
        studies.begin("another", "none.pth", flags)
    assert not Workdir("another").root.exists()
    for restored, other in (("b.pth", flags), ("a.pth", flags[:1])):
        with pytest.raises(UserError, match="results/study holds the models of a study with"):
            studies.begin("study", restored, other)
