"""docs/published_weights.md: each row's configuration takes files of the row's layout."""

import importlib.util
import json
import re

import pytest
import tiny
import torch

import models
from storage import checkpoints
from storage.ema import EMA
from utils import UserError

PAGE = (tiny.ROOT / "docs/published_weights.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| `(configs/.+?)` \| .+? \| `(\w+)` \|$", PAGE, re.MULTILINE)


def layout(name):
    """Names and shapes of a file's network, in order."""
    for paper in ("qc", "dlsm"):
        manifest = json.loads((tiny.ROOT / f"tests/golden/manifest_{paper}.json").read_text())
        if name in manifest:
            return manifest[name]["tensors"]
    raise AssertionError(name)


def network_of(path, classifier):
    """A configuration's network without storage: names and shapes are all that is asked."""
    spec = importlib.util.spec_from_file_location("some_config", tiny.ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.device("meta"):
        make = models.create_classifier if classifier else models.create_model
        return make(module.get_config())


def file_of(name, tensors, folder):
    """A file in the published format; a tensor's one number stands for all of its own."""

    def filled(shape):
        return torch.zeros(()).expand(shape)

    whole = {n: filled(shape) for n, shape in tensors}
    for each, value in whole.items():
        if each.endswith("num_batches_tracked"):
            whole[each] = value.long()
    content = {"model": {f"module.{n}": value for n, value in whole.items()}, "optimizer": {}}
    trained = [value for n, value in whole.items() if not n.endswith((".0.W", "sigmas"))]
    moments = {
        index: {"step": 1, "exp_avg": value, "exp_avg_sq": value}
        for index, value in enumerate(trained)
    }
    groups = [{"lr": 2e-4, "params": list(range(len(trained)))}]
    content["optimizer"] = {"state": moments, "param_groups": groups}
    if "classifier" not in name:
        content["ema"] = {"decay": 0.999, "num_updates": 1, "shadow_params": trained}
    torch.save(content, folder / "published.pth")
    return folder / "published.pth"


def test_the_page_names_every_kind():
    assert len(ROWS) == 17
    assert len({path for _, path, _ in ROWS}) == 14


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
@pytest.mark.parametrize(("path", "name"), sorted({(path, name) for _, path, name in ROWS}))
def test_the_loader_takes_the_layout(tmp_path, path, name):
    tensors, classifier = layout(name), "classifier" in name
    network = network_of(path, classifier)
    file = file_of(name, tensors, tmp_path)
    content = checkpoints.read(file)
    checkpoints.require_kind(content, file, "classifier" if classifier else "score model")
    checkpoints.load_model(network, content, file)
    if not classifier:
        checkpoints.load_ema(EMA(network.parameters(), 0.999), content, file)
    renamed = dict(content, model={**content["model"], "module.other": torch.zeros(1)})
    with pytest.raises(UserError, match="other"):
        checkpoints.load_model(network, renamed, file)
