"""Classifier-free guidance: labels in the network, in training and in sampling."""

import functools
import json
import shutil

import pytest
import tiny
import torch
from commands import works
from device_option import DEVICE

import losses
import models
import run_lib
import sde_lib
from configs import common
from configs import points as plane
from metrics import encoding, feature_classifier  # noqa: F401 (imported here, the forks need not)
from models.labels import NO_LABEL
from models.scores import ClassifierFreeScore, EnergyScore, InParts, Score
from storage.files import load_npz
from training.labels import LabelDropout
from utils import UserError

VE = sde_lib.VESDE()
DEMO = tiny.ROOT / "configs/demo"


class Bias(torch.nn.Module):
    """net(x, σ, y) = −(x − mean_y)/σ², with means of two classes and, last, of no label."""

    takes_labels = True

    def __init__(self):
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor([-1.0, 2.0, 0.5], dtype=torch.float64))

    def forward(self, x, cond, labels=None):
        shape = (-1,) + (1,) * (x.ndim - 1)
        labels = NO_LABEL * torch.ones_like(cond).long() if labels is None else labels
        return -(x - self.means[labels].reshape(shape)) / cond.reshape(shape) ** 2


@pytest.fixture
def batch():
    torch.manual_seed(0)
    x = torch.randn(6, 1, 2, 2, dtype=torch.float64, device=DEVICE)
    return (
        x,
        torch.rand(len(x), dtype=x.dtype, device=DEVICE),
        torch.tensor([0, 1, 1, 0, 1, 0], device=DEVICE),
    )


def network(**changes):
    """A small NCSN++ of 10 classes."""
    config = common.base(common.CIFAR10)
    fields = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}
    fields |= {"num_classes": 10, "dropout": 0.0, "init_scale": 1.0, **changes}
    config.model.update(fields)
    config.data.image_size = 8
    torch.manual_seed(0)
    return models.create_model(config).to(DEVICE)


# ---------------------------------------------------------------- the network


def test_without_classes_nothing_is_there():
    """Neither in the network's names nor in its random numbers, nor in what is drawn after it."""
    without = network(num_classes=None)
    following = torch.rand(1)
    labelled = network(num_classes=10)
    weight = labelled.label_embedding.weight
    assert torch.equal(torch.rand(1), following)
    assert not weight[NO_LABEL].any()
    assert 0.9 < weight[:NO_LABEL].std() < 1.1
    assert weight[:NO_LABEL].mean().abs() < 0.1
    state = labelled.state_dict()
    assert state.pop("label_embedding.weight").shape == (11, 32)
    assert list(state) == list(without.state_dict())
    for name, array in without.state_dict().items():
        assert torch.equal(array, state[name]), name


@pytest.mark.parametrize("name", ["ncsnpp", "ncsnpp_mod"])
def test_labels_reach_the_output(name):
    config = common.base(common.CIFAR10)
    size = 28 if name == "ncsnpp_mod" else 8
    config.data.image_size = size
    config.model.update(
        {"name": name, "nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    )
    config.model.update({"num_classes": 3, "init_scale": 1.0})
    net = models.create_model(config).to(DEVICE).eval()
    x = torch.rand(1, 3, size, size, device=DEVICE).expand(4, -1, -1, -1)
    sigma = torch.ones(4, device=DEVICE)
    labels = torch.tensor([0, 1, 2, NO_LABEL], device=DEVICE)
    with torch.no_grad():
        out = net(x, sigma, labels=labels)
    assert min((out[i] - out[j]).abs().max() for i in range(4) for j in range(i)) > 1e-4
    torch.testing.assert_close(net(x, sigma)[3], out[3])


@pytest.mark.parametrize("kind", [Score, EnergyScore])
def test_derivatives_are_those_at_the_labels(kind):
    """J v pushed forward, and Jᵀv of several copies of the batch, agree with double backward."""
    score = kind(network(nonlinearity="swish"), VE).conditioned_on(
        torch.tensor([3, NO_LABEL], device=DEVICE)
    )
    x = torch.rand(2, 3, 8, 8, device=DEVICE)
    t = torch.tensor([0.3, 0.6], device=DEVICE)
    v = torch.randn(2, *x.shape, device=DEVICE)
    s, Jv = score.value_and_jvp(x, t, v)
    _, q = losses.jacobian.value_and_vjp(score, x, t, v)
    x.requires_grad_()
    out = score(x, t)
    (expected,) = torch.autograd.grad(out, x, v[0], retain_graph=True)
    torch.testing.assert_close(s, out, rtol=1e-4, atol=1e-4 * float(out.abs().max()))
    torch.testing.assert_close(q[0], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    dot = (Jv[1] * v[0]).sum().detach()
    torch.testing.assert_close(dot, (q[0] * v[1]).sum(), rtol=1e-3, atol=1e-3 * float(dot.abs()))


def test_mistaken_networks_get_a_sentence():
    config = plane.plane("moons", "usbm")
    config.model.num_classes = 2
    with pytest.raises(UserError, match=r"model\.num_classes"):
        models.create_model(config)
    with pytest.raises(UserError, match=r"model\.conditional"):
        network(conditional=False)


# ---------------------------------------------------------------- guidance


def test_the_guided_score_is_the_formula(batch):
    """(1 − w)·s(x, t) + w·s(x, t, y): the first at w = 0 and the second at w = 1, to the bit."""
    x, t, labels = batch
    net, rows = Bias().to(DEVICE), []
    score = Score(net, VE)
    without, of_class = score(x, t), score.conditioned_on(labels)(x, t)
    for scale in (0.0, 1.0, 2.5, -0.5):
        guided = ClassifierFreeScore(score, labels, scale)
        torch.testing.assert_close(guided(x, t), without + scale * (of_class - without))
        one = ClassifierFreeScore(score, labels[:1], scale)  # a class for all, in any parts
        torch.testing.assert_close(InParts(one, 4)(x, t)[3], guided(x, t)[3])
    assert torch.equal(ClassifierFreeScore(score, labels, 0.0)(x, t), without)
    assert torch.equal(ClassifierFreeScore(score, labels, 1.0)(x, t), of_class)
    net.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    ClassifierFreeScore(score, labels, 2.0)(x, t)
    assert rows == [12]  # one pass


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_labels_are_dropped_as_the_draws_say(probability):
    objective = LabelDropout(losses.DSM(None, VE, 1e-5), probability)
    torch.manual_seed(0)
    x = torch.zeros(20000, 1, device=DEVICE)
    draws = objective.draw(x)
    labels = torch.arange(len(x), device=DEVICE) % 10
    kept = objective.kept(labels, draws)
    dropped = kept == NO_LABEL
    assert torch.equal(dropped, draws["label"] < probability)
    assert torch.equal(kept[~dropped], labels[~dropped])
    error = (probability * (1 - probability) / len(x)) ** 0.5
    assert abs(float(dropped.float().mean()) - probability) <= 4 * error


def test_the_loss_is_that_of_the_labels_that_are_kept(batch):
    x, _, labels = batch
    net = Bias().to(DEVICE)
    objective = LabelDropout(losses.DSM(Score(net, VE), VE, 1e-5), 0.5)
    draws = objective.draw(x)
    draws["label"] = torch.tensor([0.1, 0.9, 0.1, 0.9, 0.9, 0.9], device=DEVICE)
    told = torch.tensor([NO_LABEL, 1, NO_LABEL, 0, 1, 0], device=DEVICE)
    u, z = draws["u"], draws["z"]
    expected = losses.DSM(Score(net, VE).conditioned_on(told), VE, 1e-5).loss(x, u, z).mean()
    loss, values = objective(x, labels, draws)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(objective.evaluate(x, labels, draws)["loss"], expected.detach())
    assert values.keys() == {"loss"}
    # In parts, as with a microbatch.
    parts = losses.parts_of(x, labels, draws, 4)
    torch.testing.assert_close(sum(share * objective(*part)[0] for share, part in parts), loss)
    loss.backward()
    assert net.means.grad.count_nonzero() == 3


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"loss__balancing_fac": 0.1}, {"model__energy": True}])
def test_qc_and_constrained_models_take_labels(tmp_path, monkeypatch, changes):
    """Their objectives are told nothing of labels: a step of each trains the embedding."""
    monkeypatch.chdir(tmp_path)
    more = {"model__num_classes": 10, "training__n_iters": 3, "training__label_dropout": 0.5}
    job = run_lib.train(tiny.config(tmp_path / "cache", **more, **changes), "run")
    assert isinstance(job.objective, LabelDropout)
    weight = job.model.label_embedding.weight.detach().clone()
    assert weight.isfinite().all()
    job.model.label_embedding.reset_parameters()
    moved = (weight != job.model.label_embedding.weight).any(1)
    assert moved[NO_LABEL]
    assert moved[:NO_LABEL].any()


# ---------------------------------------------------------------- the commands


@pytest.mark.slow
def test_from_training_to_classwise_metrics(tmp_path, monkeypatch):
    briefly = functools.partial(feature_classifier.train_small_classifier, steps=3)
    monkeypatch.setattr(feature_classifier, "train_small_classifier", briefly)
    cache = tmp_path / "cache"
    train = tiny.arguments(cache, DEMO / "digits_cfg.py")
    works("main.py --workdir W", tmp_path, train)
    fast = "--sampler heun --steps 3"
    works("run_lib_evaluation_asym.py --workdir W --bs 360 --nl 1 --calculate", tmp_path, train)
    # By class, from the same checkpoint.
    few = {"eval__num_samples": 40, "eval__num_samples_all": 40, "eval__num_divisions": 2}
    guided = tiny.arguments(cache, DEMO / "digits_cfg_guided.py", eval__batch_size=3, **few)
    sample = f"run_lib_sampling.py {fast} --mode full"
    works(f"{sample} --workdir W", tmp_path, guided)
    results = tmp_path / "results"
    folder = results / "W/eval_samples_heun"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npz")}
    assert files.keys() == {f"{label}/samples_{r}.npz" for label in range(10) for r in (0, 1)}
    meta = json.loads(str(load_npz(folder / "3/samples_0.npz", "meta")["meta"]))
    assert meta["score_step"] == 8
    assert meta["sampling"]["scaling_factor"] == 2.0
    # A class of its own, in another workdir, in a division.
    restore = "--restore results/W/checkpoints/checkpoint.pth"
    one = f"run_lib_sampling.py {fast} --mode class --classid 3 --division_idx 1 {restore}"
    works(f"{one} --workdir V", tmp_path, guided)
    (again,) = (results / "V").rglob("*.npz")
    assert again.name == "samples_1.npz"
    assert again.read_bytes() == files["3/samples_1.npz"]
    shutil.rmtree(results / "V")
    works(f"{one} --workdir V --scale 0", tmp_path, guided)
    (again,) = (results / "V/eval_samples_heun_scale0").rglob("*.npz")
    assert again.read_bytes() != files["3/samples_1.npz"]
    # The class-wise metrics.
    features = [*guided, "--config.eval.nearest_k=1"]
    measure = "run_lib_evaluation.py --sampler heun --workdir W"
    works(f"{measure} --stat --latent", tmp_path, features)
    works(f"{measure} --fidis --prdc --mode class", tmp_path, features)
    metrics = json.loads((results / "W/metrics.json").read_text())
    assert {"fid_is_class_heun", "prdc_class_heun"} <= metrics.keys()
