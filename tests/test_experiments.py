"""The papers' small experiments: the published rows, and each formula against a direct one."""

import dataclasses
import math
import types

import numpy as np
import pytest
import torch
from absl import flags
from scipy import integrate

import sampling
import sde_lib
from configs import points
from readers import points as sets
from studies import autoencoder, exact_samplers, gaussian, helmholtz, moons, oracle, plane

# ε, steps, NAsym and Asym with the rotating error, steps with the other.
GAUSSIAN = [
    (0.0, 1, 0.0, 0.0, 1),
    (5e-4, 4, 4.41e-7, 1.77e-2, 2),
    (7.5e-4, 5, 6.60e-7, 2.65e-2, 3),
    (1e-3, 6, 8.78e-7, 3.53e-2, 3),
    (1.5e-3, 57, 1.31e-6, 5.28e-2, 4),
    (1.75e-3, 121, 1.53e-6, 6.15e-2, 5),
    (2.25e-3, 238, 1.96e-6, 7.89e-2, 16),
]


@pytest.mark.parametrize("row", GAUSSIAN, ids=lambda row: f"{row[0]:g}")
def test_gaussian_gives_the_published_table(row):
    epsilon, usbm_steps, nasym, asym, csbm_steps = row
    found = gaussian.measure(epsilon)
    assert (found["usbm_steps"], found["csbm_steps"]) == (usbm_steps, csbm_steps)
    assert float(f"{found['usbm_nasym']:.2e}") == nasym
    assert float(f"{found['usbm_asym']:.2e}") == asym


# Step, loss, sym_diff, weight_diff.
AUTOENCODER = [
    (0, 2.625e-1, 0.8350, 0.9987),
    (1000, 7.108e-2, 0.4268, 0.9246),
    (2000, 1.227e-2, 0.1560, 0.9629),
    (3000, 1.671e-3, 3.04e-2, 0.9984),
]


@pytest.mark.parametrize("steps", [2, pytest.param(3001, marks=pytest.mark.slow)])
def test_autoencoder_gives_the_published_rows(steps):
    for found, row in zip(autoencoder.train(steps)[::5], AUTOENCODER):
        assert found == pytest.approx(row, rel=0.01)


# ---------------------------------------------------------------- samplers with exact scores


def test_two_gaussians_and_their_guided_target():
    """The score is the density's by autograd, and p(x)·p(y|x)³ has the mean of its integrals."""
    classes = exact_samplers.CLASSES
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.full((9,), 0.5, dtype=torch.float64)
    sigma = exact_samplers.SDE.sigma(t)
    log_p = torch.logsumexp(classes.logits(x, sigma), 1)
    (expected,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(classes.score(x.detach(), t), expected)

    def target(x):
        left, right = (math.exp(-((x - mean) ** 2) / (2 * 0.4**2)) for mean in (-0.5, 0.5))
        return left**3 / (left + right) ** 2

    mass, first = (integrate.quad(lambda x, k=k: x**k * target(x), -4, 4)[0] for k in (0, 1))
    line = np.linspace(-4, 4, 2001)
    assert (line * classes.guided_target(line)).sum() == pytest.approx(first / mass, rel=1e-4)


def test_a_sampler_with_exact_scores_is_measured(monkeypatch):
    monkeypatch.setattr(exact_samplers, "DRAWN", 2000)
    row, x = exact_samplers.measure(exact_samplers.samplers(40)["heun"])
    assert row["share left"] == pytest.approx(0.3, abs=0.04)
    assert row["spread"] == pytest.approx(1, abs=0.08)
    assert row["guided mean"] == x.mean()
    line = np.linspace(-3, 2, 501)
    target = (line * exact_samplers.CLASSES.guided_target(line)).sum()
    assert row["guided mean"] < target - 0.2  # Heun's go too far


# ---------------------------------------------------------------- the exact scores


def test_far_from_its_boxes_the_score_points_back():
    """40 standard deviations away, where the density itself is 0 in float64."""
    low = torch.zeros(1, 2, dtype=torch.float64)
    found = oracle.Boxes(low, low + 1)(torch.tensor([[-40.0, 0.5], [41.0, 0.5]]), 1.0)
    torch.testing.assert_close(found[:, 0], torch.tensor([40.0, -40.0]).double(), rtol=0.01, atol=0)
    torch.testing.assert_close(found[:, 1], torch.zeros(2).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", oracle.PLANE)
def test_the_sets_exact_scores_are_those_of_many_of_their_points(name):
    """At a noise that 100,000 points fill: the mean error is what so few points leave."""
    drawn, _ = getattr(sets, name)(np.random.default_rng(0), 100000)
    x = torch.from_numpy(drawn[::500]) + torch.randn(200, 2)
    expected = oracle.Gaussians(torch.from_numpy(drawn))(x, 1.0)
    found = oracle.PLANE[name]()(x, variance=1.0)
    assert (found - expected).norm(dim=1).mean() < 0.05 * expected.norm(dim=1).mean()


@pytest.mark.parametrize("name", oracle.PLANE)
def test_the_sets_densities_have_these_scores_and_integrate_to_1(name):
    known, line = oracle.PLANE[name](), torch.linspace(-13, 13, 53, dtype=torch.float64)
    x = torch.cartesian_prod(line, line).requires_grad_()
    found = known.log_density(x, variance=0.5)
    (expected,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(known(x.detach(), variance=0.5), expected, rtol=1e-6, atol=1e-6)
    assert found.exp().sum().item() * 0.5**2 == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------- the plane


@pytest.fixture
def measures():
    """Measures on points of N(0, I), whose exact score is known: −x/(1 + σ²)."""
    test = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    sde = sde_lib.from_config(points.plane("gaussian_8", "usbm"))
    exact = oracle.ExactScore(lambda x, variance: -x / (1 + variance), sde)
    return plane.Measures(exact, test, seed=0)


def test_the_exact_score_is_measured_as_such(measures):
    assert measures.score_error(measures.exact) == 0
    # It is a thousandth too long: the error is half its square.
    longer = measures.score_error(lambda x, t: 1.001 * measures.exact(x, t))
    assert 0 < longer < 1e-6
    # N(0, 9 I), the prior, stands for p_T, of variance 10.
    entropy = math.log(2 * math.pi) + 1
    assert measures.nats(measures.exact, rtol=1e-5) == pytest.approx(entropy, abs=0.05)


def test_the_published_comparison_has_another_variance_and_time(measures):
    published = dataclasses.replace(measures, train=measures.test)
    x, t, found = published.levels[8]
    sigma = 0.1 * 30 ** (8 / 11)
    expected = -x / (1 + 2 * sigma**2)
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert t.tolist() == pytest.approx([0.9] * len(x))


class Turning:
    """s = (−y/2, 2x): A = (½ + 2)² and tr JJᵀ = ¼ + 4."""

    def value_and_jvp(self, x, t, v):
        return x, torch.stack([-0.5 * v[..., 1], 2.0 * v[..., 0]], dim=-1)


def test_the_asymmetry_of_a_turning_field_is_known(measures):
    found = measures.asymmetry(Turning())
    assert found["asym"] == pytest.approx(2.5**2, rel=1e-6)
    assert found["nasym"] == pytest.approx(0.5 * 2.5**2 / 4.25, rel=1e-6)


@pytest.mark.parametrize("kind", ["csbm", "qcsbm"])
def test_the_plane_is_trained_and_measured(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("SCORED", "MEASURED", "DRAWN"):
        monkeypatch.setattr(plane, name, 20)
    monkeypatch.setattr(points, "base", small(points.base))
    config = plane.configure("spiral_2", kind, seed=0, batch=16, steps=4)
    row = plane.run(config, kind, plane.measures_of(config))
    assert all(np.isfinite(list(row.values())))
    assert (row["nasym"] < 1e-6) == (kind == "csbm")


# ---------------------------------------------------------------- Helmholtz


def turned(field):
    """A field's quarter turn; of ∇ log p it is r: p·r is a turned gradient, without divergence."""
    return torch.stack([-field[:, 1], field[:, 0]], dim=1)


def test_the_decomposition_of_a_known_field():
    """∇(sin x₁ + x₁x₂) and the rotation, on a Gaussian; halving the step quarters the error."""
    known = oracle.Gaussians(torch.zeros(1, 2, dtype=torch.float64), 0.5)
    errors = []
    for count in (65, 129):
        level = helmholtz.Decomposition(known, 0.5, count)
        seen = level.on_edges(lambda x: torch.stack([x[:, 0].cos() + x[:, 1], x[:, 0]], dim=1))
        unseen = level.on_edges(turned)
        assert level.mean_square(unseen) == pytest.approx(2 * 0.75, rel=1e-3)
        found = level.split(seen + unseen)
        errors.append(level.mean_square(found[0] - seen) ** 0.5)
        assert level.mean_square(found[1] - unseen) ** 0.5 == pytest.approx(errors[-1])
        total = sum(map(level.mean_square, found))
        assert total == pytest.approx(level.mean_square(seen + unseen), rel=1e-6)
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.slow
def test_only_the_seen_part_changes_samples(tmp_path, monkeypatch):
    """Exact scores with errors that are all unseen, a turned score, and all seen, a constant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plane, "DRAWN", 2000)
    measures = plane.measures_of(plane.configure("gaussian_8", "usbm", seed=0, batch=16, steps=4))
    exact, levels = measures.exact, []
    for t in helmholtz.TIMES:
        level = helmholtz.Decomposition(exact.score, measures.sde.noise_level(t), 65)
        levels.append(level)

    def measure(score):
        return helmholtz.measure(score, measures, levels)

    rotating = measure(lambda x, t: exact(x, t) + 0.5 * turned(exact(x, t)))
    moved = measure(lambda x, t: exact(x, t) + 0.2)
    assert rotating["seen"] < 0.01 * rotating["unseen"]
    assert moved["unseen"] < 0.01 * moved["seen"]
    assert abs(rotating["KL"]) < 0.01 < moved["KL"]
    assert rotating["distance"] < 0.01 < moved["distance"]
    assert moved["without r"] == pytest.approx(moved["distance"], rel=0.05)
    assert moved["without ∇φ"] < 0.01


def test_tables_correlations_and_figure_of_the_parts(tmp_path, monkeypatch, capsys):
    """Of rows in which the distance goes with what is seen, and KL with nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/studies").mkdir(parents=True)
    chosen = types.SimpleNamespace(seeds=list(range(6)), batch=16, steps=2)
    monkeypatch.setattr(flags, "FLAGS", chosen)
    monkeypatch.setattr(points, "base", small(points.base))
    monkeypatch.setattr(plane, "train", lambda config, kind: config.seed + (kind == "csbm") / 2)
    monkeypatch.setattr(helmholtz, "Decomposition", lambda known, sigma: sigma)

    def row(score, measures, levels):
        values = score, -(score % 3), score % 2, score, score, 0.0
        return dict(zip(helmholtz.COLUMNS, values))

    monkeypatch.setattr(helmholtz, "measure", row)
    helmholtz.main()
    printed = capsys.readouterr().out
    assert printed.count("rank correlation, seen, distance: 1.00") == len(oracle.PLANE)
    assert ", held" in printed
    assert (tmp_path / "results/studies/helmholtz.png").stat().st_size > 0


def small(base):
    """`points.base` with 200 points, whatever number is asked for."""
    return lambda dataset, count: base(dataset, 200)


# ---------------------------------------------------------------- moons


def test_the_weighted_residual_is_the_papers():
    s, z, sigma = torch.randn(7, 2), torch.randn(7, 2), torch.rand(7)
    found = moons.fourth_power(s, None, None, sigma, z)
    torch.testing.assert_close(found, sigma[:, None] ** 2 * s + sigma[:, None] * z)


def test_the_exact_classifier_is_measured_as_such():
    """Two points as moons: their softmax is known, and with it all distances are 0."""
    sde = sde_lib.from_config(points.moons())
    means = torch.tensor([[-3.0, 1.0], [4.0, 0.0]])
    truth = moons.Truth([means[:1], means[1:]])

    def classifier(x, sigma):
        squares = (x[:, None] - means).square().sum(2)
        return -squares / (2 * sigma[:, None] ** 2)

    score = oracle.ExactScore(oracle.Gaussians(means), sde)
    guided = [moons.GuidedScore(score, classifier, sde, torch.tensor([label])) for label in (0, 1)]
    assert max(truth.of_models(score, *guided, sde=sde).values()) < 1e-5


def test_the_distances_of_zero_are_the_published_ones():
    """D full, Dp and Dl of both moons: sets and grid are without chance, up to their order."""
    x, labels = sets.moons(np.random.default_rng(0), 10000)
    truth = moons.Truth([torch.from_numpy(x[labels == label]) for label in range(2)], True)
    published = {
        **{"D": 0.15647, "Dp upper": 0.25463, "Dp lower": 0.25467},
        **{"Dl upper": 0.14325, "Dl lower": 0.14335},
    }
    assert truth.of_nothing() == pytest.approx(published, rel=3e-3)


def test_the_published_sampler_is_its_recurrence(monkeypatch):
    """Of a linear score: x ← (1 + √7·i/3)·x + 3.5·z."""
    monkeypatch.setattr(moons, "PUBLISHED_DRAWN", 4)
    monkeypatch.setattr(moons, "PUBLISHED_STEPS", 3)
    noise = [sampling.SeededNoise(torch.device("cpu"), "test", 0) for _ in range(2)]
    found = moons.draw_published(lambda x, t: x * t[:, None], None, noise[0])
    x = noise[1].randn((4, 2))
    for i in range(3):
        x = x + math.sqrt(7) * x * i / 3 + 3.5 * noise[1].randn_like(x)
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("as_published", [False, True])
def test_moons_are_trained_and_measured(tmp_path, monkeypatch, capsys, as_published):
    """The samples of the exact scores lie on their moons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(points, "base", small(points.base))
    monkeypatch.setattr(moons, "SCORE_BATCH", 16)
    monkeypatch.setattr(moons, "DRAWN", 100)
    monkeypatch.setattr(moons, "PUBLISHED_DRAWN", 30)
    monkeypatch.setattr(moons, "PUBLISHED_STEPS", 3)
    given = {"steps": 2, "batch": 16, "score_steps": 2, "seeds": [0], "as_published": as_published}
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**given))
    moons.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    heads, _, *rows = [line[2:-2].split(" | ") for line in printed]
    table = {name: dict(zip(heads[1:], row)) for name, *row in rows}
    assert set(points.MOONS_RATES) < table.keys()
    for name in points.MOONS_RATES:
        assert all(np.isfinite([float(table[name][key]) for key in ("Dl upper", "Dp lower")]))
    assert ("exact" in table) != as_published
    if not as_published:
        assert float(table["exact"]["right moon"]) == 1
        assert float(table["exact"]["precision"]) > 0.8
