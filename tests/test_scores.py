"""Scores of networks: parity, and the symmetry of an energy's score."""

import golden
import pytest
import torch
from device_option import DEVICE

import sde_lib
from models import jacobian
from models.scores import EnergyScore, InParts, Score
from models.trained import open_score
from utils import UserError

VE, VP = sde_lib.VESDE(), sde_lib.VPSDE()


def compose(kind):
    models = golden.manifest("qc")
    net = golden.network(models["loss_dsm_vp" if kind.startswith("vp") else "loss_dsm"]["model"])
    return {
        "ve": lambda: Score(net, VE),
        "ve_energy": lambda: EnergyScore(net, VE),
        "vp": lambda: Score(net, VP),
        "vp_discrete": lambda: Score(net, VP, continuous=False),
    }[kind]()


@pytest.mark.parametrize("kind", ["ve", "ve_energy", "vp", "vp_discrete"])
def test_scores_are_the_published_ones(kind):
    data = golden.arrays("score_fn")
    with torch.no_grad():
        score = compose(kind)(data["x"], data["t"])
    assert golden.relative_error(score, data[kind]) < 1e-4
    assert not score.requires_grad


def test_an_energy_score_is_a_gradient():
    """Its Jacobian is symmetric: v·Jw = w·Jv."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    net.to(DEVICE).double()
    score = EnergyScore(lambda x, cond: net(x), VE)
    x = torch.randn(1, 5, dtype=torch.float64, device=DEVICE)
    t = torch.tensor([0.4], dtype=torch.float64, device=DEVICE)
    J = torch.autograd.functional.jacobian(lambda x: score(x, t), x)[0, :, 0]
    torch.testing.assert_close(J, J.T)
    assert J.abs().max() > 1e-6


@pytest.mark.parametrize("kind", [Score, EnergyScore])
def test_products_alone_take_one_pass_of_the_network(kind):
    """The asymmetry of an energy's score needs J v, not the score."""
    calls = []

    def net(x, cond):
        calls.append(len(x))
        return torch.tanh(x) * cond[:, None]

    score, t = kind(net, VE), torch.tensor([0.2, 0.6])
    x, v = torch.randn(2, 5), torch.randn(3, 2, 5)
    Jv = jacobian.score_jvp(score, x, t, v)
    assert calls == [2]
    s, same = score.value_and_jvp(x, t, v)
    torch.testing.assert_close(same, Jv)
    torch.testing.assert_close(s, score(x, t))
    J = torch.autograd.functional.jacobian(lambda x: score(x, t).sum(0), x).permute(1, 0, 2)
    torch.testing.assert_close(Jv, torch.einsum("bij,kbj->kbi", J, v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [2, 8])
def test_a_score_in_parts_is_the_whole_ones(rows):
    """Of parts that differ by an image at the most."""
    data = golden.arrays("score_fn")
    x, t = torch.cat([data["x"], data["x"].flip(0)])[:5], torch.cat([data["t"], data["t"]])[:5]
    score, sizes = compose("ve"), []

    def counted(x, t):
        sizes.append(len(x))
        return score(x, t)

    with torch.no_grad():
        parts, whole = InParts(counted, rows)(x, t), score(x, t)
    assert golden.relative_error(parts, whole) < 1e-5
    assert max(sizes) <= rows
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == len(x)


def test_a_published_file_holds_no_configuration():
    path = golden.DIRECTORY / "official_qc_checkpoint.pth"
    with pytest.raises(UserError, match=path.name):
        open_score(path, "cpu")
