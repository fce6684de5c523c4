"""report.py: one page that holds everything, whatever a workdir holds or lacks."""

import base64
import contextlib
import datetime
import html
import io
import re
import shutil
import types

import numpy as np
import pytest
import tiny
from commands import command
from drawn import META, draw
from PIL import Image

import datasets
import models
import report
import run_lib
from storage.files import save_json
from storage.scalars import ScalarWriter
from storage.workdir import Workdir
from utils import UserError


def write(*workdirs):
    """The page's text, and the data and titles of its images, which are part of it."""
    page = report.report(workdirs).read_text()
    assert not re.search(r"<(script|link|iframe)|href=", page)
    found = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)" alt="([^"]*)"', page)
    assert len(found) == page.count("src=")
    images = [base64.b64decode(data, validate=True) for data, _ in found]
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))
    titles = [title for _, title in found]
    return types.SimpleNamespace(text=" ".join(text.split()), images=images, titles=titles)


def curves(place, steps):
    """An event file, as of a training run."""
    with contextlib.closing(ScalarWriter(place.tensorboard, steps[0])) as writer:
        for step in steps:
            writer.add_scalar("train/loss", 1 / step, step)
            writer.add_scalar("test/loss", 1.5, step)


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A workdir with everything that a report shows."""
    monkeypatch.chdir(tmp_path)
    place = Workdir("full")
    curves(place, [1, 2, 3])
    draw(place.root / "eval_sampling", 2, 30, 4)
    draw(place.root / "eval_samples", 3, 12, 2)
    (place.root / "asym").mkdir()
    Image.new("L", (4, 4)).save(place.root / "asym/asym.png")
    place.record(
        fid_is=fid(3.14159, generated=30, real=1437, samples={**META, "ema": True, "nfe": 20.0}),
        nll={"bits_per_dim": 3.21, "nfe": 40.0, "settings": {"ema": False, "atol": 1e-5}},
        cas_ours={"accuracy": 0.5, "settings": {"images": 300, "samples": {}}},
        added={"of_a_configuration": 0.25, "settings": {}},
    )
    return place


def fid(value, **settings):
    """An entry of metrics.json."""
    return {"fid": value, "is": 9.5, "settings": {"features": "inception-2015-12-05", **settings}}


def test_everything_is_on_the_page(full):
    page = write("full")
    date = datetime.date.today().isoformat()
    columns = "samples real images features weights step sampler sampler's NFE date"
    facts = f"30 1,437 inception-2015-12-05 EMA 70 pc 20 {date}"
    for part in (
        f"run FID ↓ Inception score ↑ {columns} full 3.1416 9.5 {facts}",
        f"run NLL, bits/dim ↓ NFE weights atol date full 3.21 40 raw 1e-05 {date}",
        f"run accuracy ↑ images date full 0.5 300 {date}",
        f"run of_a_configuration date full 0.25 {date}",
        "fid_is.samples.sampling.snr 0.16",
        "No real images are shown.",
    ):
        assert part in page.text
    of = "(checkpoint step 70, seed 42, sampler pc, NFE 20), full"
    assert page.titles == [
        f"eval_sampling: 4 samples {of}",
        f"eval_samples: 6 samples {of}",
        "asym: Asym and NAsym against time t, full",
        "loss",
    ]


def test_workdirs_side_by_side(full):
    other = Workdir("other")
    curves(other, [1, 2])
    other.record(fid_is=fid(2.5), fid_is_class=fid(7.5, classes=10))
    Workdir("untouched").create()
    page = write("full", "other", "full", "untouched")
    date = datetime.date.today().isoformat()
    assert f"20 {date} other 2.5 9.5 – – inception-2015-12-05 – – – – {date} run" in page.text
    assert f"classes features date other 7.5 9.5 10 inception-2015-12-05 {date}" in page.text
    assert page.titles.count("loss") == 1
    assert not (other.root / "report.html").exists()


# ---------------------------------------------------------------- a trained run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the checkpoint of a tiny run and the cache of its data, and their network."""
    here = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        config = tiny.config("cache", training__n_iters=2)
        run_lib.train(config, "run")
    network = models.create_model(config)
    return here, sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_network_and_its_data(trained, monkeypatch):
    here, count = trained
    monkeypatch.chdir(here)
    date = datetime.date.today().isoformat()
    page = write("run")
    assert f"date run ncsnpp {count:,} 2 digits 1,437 {date}" in page.text
    assert all(title in ("loss", "grad_norm", "images_per_s") for title in page.titles)


def test_real_images_of_the_classes_of_the_samples(trained, monkeypatch):
    here, _ = trained
    monkeypatch.chdir(here)
    place = Workdir("run")
    for label in (3, 5):
        draw(place.root / f"drawn{label}", 1, 9, 9, shape=(8, 8, 1))
        (place.root / "eval_samples").mkdir(exist_ok=True)
        (place.root / f"drawn{label}/0").rename(place.root / f"eval_samples/{label}")
    page = write("run")
    assert page.titles[0] == "digits: 16 of the real training data, run"
    split = datasets.load(tiny.config("cache").data, "train")
    labels = [known(split)[image] for image in pixels(page.images[0], 16)]
    assert labels == [3] * 8 + [5] * 8
    shutil.rmtree(place.root / "eval_samples")


def test_real_images_are_those_of_the_data_if_it_is_there(trained, monkeypatch):
    here, _ = trained
    monkeypatch.chdir(here)
    place = Workdir("run")
    draw(place.root / "eval_sampling", 1, 64, 64, shape=(8, 8, 1))
    page = write("run")
    assert page.titles[0] == "digits: 64 of the real training data, run"
    split = datasets.load(tiny.config("cache").data, "train")
    assert known(split).keys() >= {*pixels(page.images[0], 64)}
    (here / "cache").rename(here / "elsewhere")
    page = write("run")
    assert "cache does not hold digits" in page.text
    assert page.titles[0].startswith("eval_sampling")
    (here / "elsewhere").rename(here / "cache")
    shutil.rmtree(place.root / "eval_sampling")


def pixels(png, count):
    """The bytes of the first `count` 8×8 images of a grid: enlarged 4 times, a border of 1."""
    picture = Image.open(io.BytesIO(png)).convert("L")
    array = np.asarray(picture)[::4, ::4]
    cells = [(9 * (i // 8) + 1, 9 * (i % 8) + 1) for i in range(count)]
    return [array[y : y + 8, x : x + 8].tobytes() for y, x in cells]


def known(split):
    """The bytes of each image -> its label."""
    return {image.tobytes(): label for image, label in zip(split.images, split.labels)}


def test_a_workdir_that_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Workdir("empty").create()
    page = write("empty")
    assert "No metrics are recorded yet" in page.text
    assert page.images == []


def test_names_cannot_break_the_page(full):
    name = "<b>&$x_1$"
    place = Workdir(name)
    curves(place, [1, 2])
    place.record(fid_is={"fid": 1.0, "settings": {"features": "<script>alert(1)</script>"}})
    page = report.report([name, "full"]).read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;$x_1$" in page


def test_mistakes_get_a_sentence(tmp_path, monkeypatch):
    tiny.check_sentence(command("report.py --workdir=none", tmp_path), "results/none")
    monkeypatch.chdir(tmp_path)
    save_json(Workdir("run").metrics, {})
    Workdir("run").metrics.write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json"):
        report.report(["run"])
