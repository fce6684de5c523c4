"""Reads the golden numbers; see docs/testing.md.

Sizes, seeds and settings come from the manifests, so that another set of the same layout can be
put in its place with the environment variable GOLDEN_DIR. Arrays and networks are on the device
that ``pytest --device`` names.
"""

import functools
import json
import math
import os
import pathlib
import zlib

import numpy as np
import torch
from device_option import DEVICE
from ml_collections import ConfigDict

import models
import sde_lib

DIRECTORY = pathlib.Path(os.environ.get("GOLDEN_DIR", pathlib.Path(__file__).parent / "golden"))


@functools.cache
def manifest(paper):
    """The manifest of "qc" or "dlsm"."""
    return json.loads((DIRECTORY / f"manifest_{paper}.json").read_text())


def names(prefix, paper="qc"):
    """The manifest's entries that begin with `prefix`."""
    return sorted(name for name in manifest(paper) if name.startswith(prefix))


def arrays(name):
    """The arrays of ``name.npz`` as tensors."""
    with np.load(DIRECTORY / f"{name}.npz") as archive:
        return {key: torch.from_numpy(archive[key]).to(DEVICE) for key in archive.files}


def rule_weight(name, shape):
    """The weight that golden/README.md's rule gives a tensor of this name and shape."""
    rs = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        value = 1 + 0.1 * rs.rand(*shape)
    elif name.endswith("running_mean"):
        value = 0.1 * rs.randn(*shape)
    elif len(shape) >= 2:
        value = rs.randn(*shape) / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(".W"):
        value = 16 * rs.randn(*shape)
    elif name.endswith("weight"):
        value = 1 + 0.1 * rs.randn(*shape)
    else:
        value = 0.1 * rs.randn(*shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def load_rule_weights(network, tensors):
    """Fill `network` by the rule; its names, shapes and their order must be the manifest's."""
    network.to(DEVICE)
    state = network.state_dict()
    assert [[name, list(value.shape)] for name, value in state.items()] == tensors
    for name, value in state.items():
        if not name.endswith("sigmas"):
            value.copy_(rule_weight(name, tuple(value.shape)))
    return network


def network(name, paper="qc"):
    """The score network of a manifest entry, with the rule's weights, in eval mode."""
    entry = manifest(paper)[name]
    return load_rule_weights(
        models.create_model(ConfigDict(entry["config"])), entry["tensors"]
    ).eval()


def classifier(name):
    """The classifier of a manifest entry, with the rule's weights, in eval mode."""
    entry = manifest("dlsm")[name]
    return load_rule_weights(
        models.create_classifier(ConfigDict(entry["config"])), entry["tensors"]
    ).eval()


def sde(entry, N=1000):
    """The SDE of a manifest entry's `sde`."""
    build = {"VESDE": sde_lib.VESDE, "VPSDE": sde_lib.VPSDE}[entry["name"]]
    return build(*(value for key, value in entry.items() if key != "name"), N=N)


def relative_error(ours, theirs):
    """max |ours − theirs| over max |theirs|."""
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


def evaluations(entry, nfe):
    """The score evaluations of a PC sampler whose published count is `nfe`.

    The published code counts N·(n_steps + 1) even where a predictor or corrector `none` evaluates
    nothing.
    """
    idle = (entry["predictor"] == "none") + entry["n_steps"] * (entry["corrector"] == "none")
    return int(nfe) - entry["N"] * idle
