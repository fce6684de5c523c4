"""What the README and docs/ say is there is there, and the README's Python runs."""

import contextlib
import importlib
import io
import operator
import re

import pytest
import tiny

import run_lib
from configs import common
from configs.demo import digits
from evaluation import SAMPLE_METRICS
from utils import flatten

PAGES = [
    *(tiny.ROOT / name for name in ("README.md", "SECURITY.md")),
    *sorted((tiny.ROOT / "docs").glob("*.md")),
]
README = PAGES[0].read_text()


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    """On a tiny model in place of the demo's."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    config = tiny.config(tmp_path / "cache", training__n_iters=2)
    run_lib.train(config, "demo")
    monkeypatch.setattr(digits, "get_config", lambda: config)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    assert printed.getvalue().startswith("torch.Size([4, 1, 8, 8]) ")
    assert "nan" not in printed.getvalue()


def test_the_notebooks_python_runs(tmp_path, monkeypatch):
    """Block after block, as its cells would."""
    monkeypatch.chdir(tmp_path)
    page = (tiny.ROOT / "docs/notebook.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 6
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["steps"].tolist() == [5, 10, 15, 20]
    assert names["images"].shape == (16, 8, 8, 1)
    assert names["nfe"] == 11
    assert names["bits"].isfinite().all()
    assert names["values"]["loss"].isfinite()


def anchors(page):
    """The names that a page's headings are linked by."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
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
CONFIGS = [
    common.qc("qc_ncsn", "CIFAR10"),
    common.dlsm_classifier("CIFAR10", "resnet18_cond"),
]
FIELDS = {name for config in CONFIGS for name in [*flatten(config.to_dict()), *config]}
DATA_FILES = (".html", ".json", ".npz", ".pth", ".txt")
NOT_OURS = ("F", "NCSNpp", "fc", "nn", "np", "scipy", "score", "torch")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_of_the_code_exist(page):
    names = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)+)(?:\([^`]*\))?`", page.read_text())
    ours = [name for name in names if name.split(".")[0] not in NOT_OURS]
    assert [name for name in ours if not name.endswith(DATA_FILES) and not is_there(name)] == []


def commands(text):
    """The commands in a page's blocks, words of one line each."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language:
            continue
        for line in block.splitlines():
            line = re.sub(r"-m (studies)\.(\w+)", r"\1/\2.py", line)
            words = line.split("#")[0].replace("[", " ").replace("]", " ").split()
            if any(word.endswith(".py") for word in words):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    """Their scripts, configurations and flags."""
    files = [
        path for folder in (".", "scripts", "studies") for path in tiny.ROOT.glob(f"{folder}/*.py")
    ]
    defined = "".join(path.read_text() for path in files)
    flags = {*re.findall(r'DEFINE_\w+\(\s*"(\w+)"', defined), "config"}
    flags |= {*re.findall(r'add_argument\(\s*"--(\w+)"', defined)}
    flags |= {metric.flag for metric in SAMPLE_METRICS}
    for words in commands(page.read_text()):
        script = next(word for word in words if word.endswith(".py"))
        assert (tiny.ROOT / script).is_file(), script
        after = words[words.index(script) + 1 :]
        for flag, value in zip(after, [*after[1:], ""]):
            if flag == "--config" and value.startswith("configs/"):
                assert (tiny.ROOT / value).is_file(), value
            if flag.startswith("--") and flag != "--" and not flag.startswith("--config."):
                assert flag.lstrip("-").partition("=")[0] in flags, flag
