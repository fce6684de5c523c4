"""report.py: one page that holds everything, whatever a workdir holds or lacks."""

import base64
import contextlib
import html.parser
import io

import numpy as np
import pytest
import tiny
from commands import command
from drawn import draw
from PIL import Image

import report
from storage.files import save_json
from storage.scalars import ScalarWriter
from storage.workdir import Workdir
from utils import UserError


class Page(html.parser.HTMLParser):
    """The tags of a page that refer to something, its images, and its text."""

    def __init__(self, text):
        super().__init__()
        self.images, self.alternatives, self.links, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes["src"])
            self.alternatives.append(attributes["alt"])
        elif attributes.keys() & {"src", "href"} or tag in ("script", "link", "iframe"):
            self.links.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def write(*workdirs):
    page = Page(report.report(workdirs).read_text())
    assert not page.links
    for uri in page.images:
        kind, _, data = uri.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
    return page


def curves(place, steps):
    """An event file, as of one stretch of a training run."""
    with contextlib.closing(ScalarWriter(place.tensorboard, steps[0])) as writer:
        for step in steps:
            writer.add_scalar("train/loss", 1 / step, step)


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
        fid_is={"fid": 3.14159, "is": 9.5, "settings": {"features": "inception-2015-12-05"}},
        nll={"bits_per_dim": 3.21, "nfe": 40.0, "settings": {"sampling": {"atol": 1e-5}}},
        cas_ours={"accuracy": 0.5, "settings": {}},
    )
    return place


def test_everything_is_on_the_page(full):
    page = write("full")
    for part in (
        "fid_is, features inception-2015-12-05 FID ↓ 3.1416 Inception score ↑ 9.5",
        "nll NLL, bits/dim ↓ 3.21 NFE 40",
        "cas_ours accuracy ↑ 0.5",
        "nll.sampling.atol 1e-05",
    ):
        assert part in page.text
    assert page.alternatives == ["eval_sampling, full", "eval_samples, full", "asym, full", "loss"]


def test_workdirs_side_by_side(full):
    other = Workdir("other")
    curves(other, [1, 2])
    other.record(fid_is={"fid": 2.5, "settings": {"features": "inception-2015-12-05"}})
    Workdir("untouched").create()
    page = write("full", "other", "full", "untouched")
    assert "FID ↓ 3.1416 2.5 – Inception score ↑ 9.5 – –" in page.text
    assert page.alternatives.count("loss") == 1
    assert not (other.root / "report.html").exists()


def test_a_workdir_that_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Workdir("empty").create()
    page = write("empty")
    assert "No metrics are recorded yet" in page.text
    assert page.images == []


def test_curves_of_batches_and_of_the_test_share_axes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(ScalarWriter(Workdir("run").tensorboard, 0)) as writer:
        for step in range(3):
            writer.add_scalar("train/loss", 1.0 + step, step)
            writer.add_scalar("test/loss", 1.5, step)
            writer.add_scalar("train/grad_norm", 0.1, step)
    assert write("run").alternatives == ["loss", "grad_norm"]


def test_names_cannot_break_the_page(full):
    name = "<b>&$x_1$"
    place = Workdir(name)
    curves(place, [1, 2])
    place.record(fid_is={"fid": 1.0, "settings": {"features": "<script>alert(1)</script>"}})
    page = report.report([name, "full"]).read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;$x_1$" in page


def test_curves_of_a_run_that_was_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Workdir("run")
    curves(place, [1, 2, 3])
    file = next(place.tensorboard.glob("*"))
    file.rename(file.with_name("events.out.tfevents.0000000001.first"))
    curves(place, [4, 5])
    steps, values = report.read_curves(place.tensorboard)["train/loss"]
    assert steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(values, 1 / steps)


def test_mistakes_get_a_sentence(tmp_path, monkeypatch):
    tiny.check_sentence(command("report.py --workdir=none", tmp_path), "results/none")
    monkeypatch.chdir(tmp_path)
    save_json(Workdir("run").metrics, {})
    Workdir("run").metrics.write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json"):
        report.report(["run"])
