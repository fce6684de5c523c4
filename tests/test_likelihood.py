"""Likelihood and asymmetry: parity and closed forms."""

import functools
import math

import golden
import numpy as np
import pytest
import torch
from device_option import DEVICE
from gaussian import GaussianData

import domains
import likelihood
import sde_lib
from models import jacobian
from models.scores import EnergyScore, Score
from utils import UserError


@pytest.mark.slow  # 980 evaluations of the network
def test_bits_per_dim_are_the_published_ones():
    (name,) = golden.names("likelihood")
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    sde = golden.sde(entry["sde"])
    assert sde.likelihood_eps == entry["eps"]
    density, z, nfe = likelihood.log_likelihood(
        Score(golden.network(entry["model"]), sde),
        sde,
        data["x"],
        data["epsilon"][None],
        rtol=entry["rtol"],
        atol=entry["atol"],
    )
    bits = domains.Images(*data["x"].shape[1:]).negative_log_likelihood(density)
    # Relative, as losses are: at these tolerances the flow of random weights amplifies rounding,
    # and SciPy's own RK45 on this field ends up to 6e-4 away from the published number.
    assert golden.relative_error(bits, data["bpd"]) < 1e-3
    assert float(z.std()) == pytest.approx(float(data["z"].std()), rel=1e-2)
    # torchdiffeq's embedded formula estimates the error otherwise than SciPy's.
    assert nfe == pytest.approx(int(data["nfe"]), rel=0.2)


@pytest.mark.parametrize(
    "sde",
    [sde_lib.VESDE(), sde_lib.VPSDE(), sde_lib.SubVPSDE(), sde_lib.CosineVPSDE()],
    ids=lambda s: type(s).__name__,
)
def test_bits_per_dim_of_gaussian_data(sde):
    """Under its exact score, the flow's likelihood is the Gaussian's, within 0.01 bits/dim."""
    torch.manual_seed(0)
    data = GaussianData(mean=0.4, std=0.2, sde=sde)
    x = data.sample(64, (2, 3, 3))
    epsilon = jacobian.rademacher(torch.randn_like(x))
    found, _, _ = likelihood.log_likelihood(data.score, sde, x, epsilon[None], rtol=1e-5, atol=1e-5)
    images = domains.Images(2, 3, 3)
    bits = images.negative_log_likelihood(found)
    density = torch.distributions.Normal(0.4, 0.2).log_prob(x).flatten(1).sum(1)
    expected = -density / (x[0].numel() * math.log(2)) + 8
    assert (bits - expected).abs().max() < 0.01
    centered = domains.Images(2, 3, 3, centered=True)
    torch.testing.assert_close(centered.negative_log_likelihood(found), bits - 1)


def test_unit_vectors_give_the_exact_divergence():
    """Points of a Gaussian with a rotating field added, whose divergence random signs miss."""
    sde = sde_lib.VESDE(0.01, 50.0)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)

    def score(x, t):
        variance = covariance + sde.sigma(t[0].double()) ** 2 * torch.eye(2, dtype=torch.float64)
        return -(torch.linalg.solve(variance, x.double().T).T).float()

    torch.manual_seed(0)
    x = torch.randn(20, 2)
    expected = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    found, _, _ = likelihood.log_likelihood(
        score, sde, x, 2**0.5 * jacobian.unit_vectors(x), rtol=1e-6, atol=1e-6
    )
    # The prior, a Gaussian of σmax alone, is narrower than p_T by a little.
    assert (found - expected.log_prob(x.double())).abs().max() < 0.02
    signs = jacobian.rademacher(torch.randn(1, *x.shape))
    estimate, _, _ = likelihood.log_likelihood(score, sde, x, signs, rtol=1e-6, atol=1e-6)
    assert (estimate - found).abs().max() > 0.1


def test_asymmetry_is_the_published_one():
    (name,) = golden.names("asym")
    entry, data = golden.manifest("qc")[name], golden.arrays(name)
    sde = sde_lib.VESDE()
    score = Score(golden.network(entry["model"]), sde)
    v = jacobian.rademacher(data["v"])[None]
    for level in entry["noise_levels"]:
        t = level * (sde.T - entry["eps"]) + entry["eps"]
        t = torch.full((len(data["x"]),), t, device=DEVICE)
        asym, nasym = likelihood.asymmetry(score, sde, data["x"], t, data["z"], v)
        assert golden.relative_error(asym, data[f"asym_{level}"]) < 1e-4
        assert golden.relative_error(nasym, data[f"nasym_{level}"]) < 1e-4


@pytest.mark.parametrize(("factor", "named"), [(1e5, r"eval\.max_nfe"), (-1e30, "checkpoint")])
def test_a_likelihood_that_cannot_be_solved_gets_a_sentence(factor, named):
    x = torch.ones(2, 3, device=DEVICE)
    with pytest.raises(UserError, match=named):
        likelihood.log_likelihood(
            lambda x, t: factor * x, sde_lib.VPSDE(), x, x[None], rtol=1e-3, atol=1e-3, max_nfe=300
        )


# ---------------------------------------------------------------- in parts


@pytest.fixture
def network_and_data():
    (name,) = golden.names("likelihood")
    return golden.network(golden.manifest("qc")[name]["model"]), golden.arrays(name)


@pytest.mark.parametrize("kind", [Score, EnergyScore])
def test_the_likelihood_in_parts_is_that_of_the_whole_batch(network_and_data, kind):
    """The field's derivatives are, so the solver takes the steps of the whole batch."""
    network, data = network_and_data
    x, epsilon = (torch.cat([data[name]] * 3)[:5] for name in ("x", "epsilon"))
    score, sde = kind(network, sde_lib.VESDE()), sde_lib.VESDE()
    state = torch.cat([x.flatten(1), torch.zeros(5, 1)], dim=1)
    fields = [likelihood.DensityField(sde, score, epsilon[None], rows) for rows in (None, 2)]
    whole, parts = (field(torch.tensor(0.4), state) for field in fields)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_the_asymmetry_in_parts_is_that_of_the_whole_batch(network_and_data, rows):
    """At most so many rows go through the network, an image and its vectors at least."""
    network, data = network_and_data
    x = torch.cat([data["x"]] * 3)[:5]
    t, z, v = torch.rand(5), torch.randn_like(x), torch.randn(2, *x.shape).sign()
    sde, sizes = sde_lib.VESDE(), []
    score = Score(network, sde)
    whole = likelihood.asymmetry(score, sde, x, t, z, v)
    network.register_forward_hook(
        lambda module, inputs, out: sizes.append(len(inputs[0]) * (1 + len(inputs[2:] and v)))
    )
    parts = likelihood.asymmetry(score, sde, x, t, z, v, rows=rows)
    for ours, expected in zip(parts, whole):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert max(sizes) <= max(rows, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_nll_of_images_from_python(channels):
    """Of 8-bit noise under the score of a wide Gaussian, in both ranges: the same bits."""
    sde = sde_lib.VESDE()
    stored = np.random.default_rng(0).integers(0, 256, (4, 5, 3, channels), dtype=np.uint8)
    images = domains.channels_first(stored)
    assert images.shape == (4, channels, 5, 3)
    assert np.array_equal(domains.channels_last(images), stored)
    bits = []
    for centered in (False, True):
        domain = domains.Images(channels, 5, 3, centered=centered)
        again = domain.to_stored(domain.from_stored(stored)).astype(int)
        assert np.abs(again - stored).max() <= 1  # it truncates
        data = GaussianData(mean=0.0 if centered else 0.5, std=1.0 + centered, sde=sde)
        drawn = torch.Generator().manual_seed(1)
        found = likelihood.nll(
            data.score, sde, domain, images, rtol=1e-5, atol=1e-5, generator=drawn
        )
        rand = functools.partial(torch.rand, generator=torch.Generator().manual_seed(1))
        x = domain.to_density(torch.tensor(images), rand).double()
        density = torch.distributions.Normal(data.mean, data.std).log_prob(x).flatten(1).sum(1)
        expected = domain.negative_log_likelihood(density)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
        bits.append(found)
    torch.testing.assert_close(*bits, rtol=0, atol=0.01)


def test_likelihoods_refuse_other_images_and_scores_without_a_graph():
    sde, domain = sde_lib.VPSDE(0.1, 20.0, 10), domains.Images(1, 4, 4)
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)

    def score(x, t):
        return -x

    for other in (images / 255, images[..., 0], images.permute(0, 2, 3, 1)):
        with pytest.raises(UserError, match=r"expected uint8 of shape \(B, 1, 4, 4\)"):
            likelihood.nll(score, sde, domain, other)
    with pytest.raises(UserError, match="expected uint8"):
        domain.from_stored(images.numpy())
    with pytest.raises(ValueError, match="no graph to x"):
        likelihood.nll(lambda x, t: score(x, t).detach(), sde, domain, images)
    with pytest.raises(ValueError, match="shaped as x"):
        likelihood.nll(lambda x, t: score(x, t)[:, 0], sde, domain, images)
