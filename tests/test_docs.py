"""What the README and docs/ name is there, and the README's Python runs."""

import contextlib
import importlib
import operator
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch

from configs import common
from evaluation import SAMPLE_METRICS
from metrics import encoding
from utils import flatten

PAGES = [
    *(tiny.ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    tiny.ROOT / "pretrained/README.md",
    *sorted((tiny.ROOT / "docs").glob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page, language):
    """The code blocks of a language in a page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for written_in, block in found if written_in == language]


def test_the_readmes_python_runs():
    (block,) = blocks(PAGES[0], "python")
    z, std = torch.randn(2, 1, 4, 4), torch.full((2,), 0.5)
    weight = torch.ones((), requires_grad=True)
    names = {"score": lambda x, t: weight * x.flip(-1), "x_t": z, "t": std, "std": std, "z": z}
    exec(block, names)
    names["loss"].backward()
    assert weight.grad.isfinite()


@pytest.mark.slow
def test_the_example_prints_what_the_readme_says(tmp_path):
    done = subprocess.run(
        [sys.executable, tiny.ROOT / "example.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "example.png").is_file()
    expected = next(block for block in blocks(PAGES[0], "") if block.startswith("8 pictures"))
    numbers = [re.findall(r"\d[\d.]*\b", text) for text in (done.stdout, expected)]
    printed, read = (np.array([*map(float, found)]) for found in numbers)
    # Another machine rounds otherwise.
    np.testing.assert_allclose(printed, read, rtol=0.05)


def test_every_field_is_described():
    text = (tiny.ROOT / "docs/configuration.md").read_text()
    described = set(re.findall(r"`([\w.]+)`", text))
    assert sorted({name for name in FIELDS if "." in name} - described) == []


def sentences(page):
    """The sentences of a page, without code, tables, headings and addresses of links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    formulas_links_tables = r"\$\$.*?\$\$|\]\([^)]*\)|^#.*?$|^\|.*?$|^!.*?$"
    text = re.sub(formulas_links_tables, "", text, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n\s*[-*\d]+\.? ", text):
        yield from re.split(r"(?<=[.:;?!])\s+", " ".join(paragraph.split()))


@each_page
def test_sentences_are_short(page):
    assert [s for s in sentences(page) if len(s.split()) > 30] == []


def test_the_notebooks_python_runs(tmp_path, monkeypatch):
    """Block after block, as its cells would."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(tiny.ROOT / "docs/notebook.md", "python"):
        exec(block, names)
    assert names["steps"].tolist() == [5, 10, 15, 20]
    assert names["images"].shape == (16, 8, 8, 1)
    assert names["nfe"] == 11
    assert names["bits"].isfinite().all()
    assert names["values"]["loss"].isfinite()


def test_the_features_for_own_pictures_run(monkeypatch):
    monkeypatch.setattr(encoding, "EXTRACTORS", {})
    (block,) = blocks(tiny.ROOT / "docs/own_pictures.md", "python")
    exec(block, {})
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    extractor = encoding.EXTRACTORS["pixel_means"](None)
    pool, logits = extractor(images)
    assert pool.shape == (2, extractor.pool_width)
    assert logits.shape == (2, extractor.logit_width)
    # The part in row 1 and column 2, in green.
    expected = images[:, 2:4, 6:9, 1].mean((1, 2)) / 255
    np.testing.assert_allclose(pool[:, (1 * 8 + 2) * 3 + 1], expected, rtol=1e-6)


def anchors(page):
    """The names that a page's headings are linked by."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


MODULES = [
    ".".join(path.relative_to(tiny.ROOT).with_suffix("").parts)
    for path in [*tiny.ROOT.glob("*.py"), *tiny.ROOT.glob("[a-z]*/*.py")]
]
CONFIGS = [common.qc("qc_ncsn", "CIFAR10"), common.dlsm_cas("CIFAR10", "resnet18_cond")]
CONFIGS.append(common.diffusers("CIFAR10"))
FIELDS = {name for config in CONFIGS for name in [*flatten(config.to_dict()), *config]}
FIELDS |= {"model.num_classes", "training.label_dropout"}
DATA_FILES = (".db", ".html", ".ini", ".json", ".npz", ".pth", ".txt")
NOT_OURS = ("F", "NCSNpp", "PIL", "fc", "nn", "np", "scipy", "score", "torch")


def is_there(name):
    """Whether a dotted name is a field of the configurations, a file, or an attribute of a module.

    A module may go without its package: `checkpoints.read`.
    """
    if name.endswith(".py"):
        return any(tiny.ROOT.glob(name)) or any(tiny.ROOT.glob(f"[a-z]*/{name}"))
    if name.removeprefix("config.") in FIELDS or name in MODULES:
        return True
    for module in MODULES:
        for spelled in {module, module.rpartition(".")[2]}:
            with contextlib.suppress(AttributeError):
                if name.startswith(f"{spelled}."):
                    attribute = name.removeprefix(f"{spelled}.")
                    operator.attrgetter(attribute)(importlib.import_module(module))
                    return True
    return False


@each_page
def test_names_of_the_code_exist(page):
    names = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)+)(?:\([^`]*\))?`", page.read_text())
    ours = [name for name in names if name.split(".")[0] not in NOT_OURS]
    assert [name for name in ours if not name.endswith(DATA_FILES) and not is_there(name)] == []


# Flags of torchrun, Slurm, TensorBoard and pytest.
FOREIGN = {
    *("nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "shutdown-timeout", "logdir"),
    *("partition", "nodes", "gpus-per-node", "array", "requeue", "dependency"),
    *("device", "dist", "input1"),
}


@each_page
def test_flags_exist(page):
    """Wherever they are named, and the fields that they override."""
    files = [
        path for folder in (".", "scripts", "studies") for path in tiny.ROOT.glob(f"{folder}/*")
    ]
    sources = "".join(path.read_text() for path in files if path.suffix == ".py")
    defined = {*re.findall(r'(?:DEFINE_\w+\(\s*"|add_argument\(\s*"--)(\w+)"', sources), "config"}
    defined |= {metric.flag for metric in SAMPLE_METRICS} | FOREIGN
    for flag in re.findall(r"(?<![\w-])--([a-z](?:[\w.-]*\w)?)", page.read_text()):
        field = flag.removeprefix("config.")
        assert flag in defined or (field != flag and is_there(field)), flag


@each_page
def test_commands_exist(page):
    """Their scripts and configurations."""
    for line in "".join(blocks(page, "")).splitlines():
        line = re.sub(r"-m (studies|scripts)\.(\w+)", r"\1/\2.py", line)
        for word in line.split("#")[0].replace("[", " ").replace("]", " ").split():
            if word.endswith(".py") and not word.isupper():
                assert (tiny.ROOT / word).is_file(), word


@pytest.mark.slow
def test_the_api_pages_are_built(tmp_path):
    """By the command of ``make api``, a page for each module that it names."""
    pytest.importorskip("pdoc")
    text = (tiny.ROOT / "Makefile").read_text().replace("\\\n", "")
    modules = re.search(r"^API := (.*)", text, re.MULTILINE)[1].split()
    command = re.search(r"-m pdoc (.*) results/api", text)[1].split()
    pdoc = [sys.executable, "-m", "pdoc", *command, tmp_path, *modules]
    done = subprocess.run(pdoc, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [name for name in modules if not (tmp_path / f"{name}.html").is_file()] == []
    assert "measure_asymmetry" in (tmp_path / "models/jacobian.html").read_text()
