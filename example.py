"""Draw eight pictures from the shipped model, and print their NLL and asymmetry.

    python3 example.py

Copy from here: a checkpoint of this code holds its configuration, a score is a function of
(x, t), and samplers, likelihood and asymmetry take any score.
"""

import pathlib

import torch

import domains
import likelihood
import sampling
from models.compute import exact_products
from models.jacobian import measure_asymmetry
from models.trained import open_score

torch.manual_seed(0)
weights = pathlib.Path(__file__).parent / "pretrained/fashion_mnist.pth"
trained = open_score(weights)
score, sde, domain = trained.score, trained.sde, domains.from_config(trained.config.data)
device = next(score.net.parameters()).device

sampler = sampling.from_config(trained.config.sampling, sde)
x, nfe = sampler(score, torch.randn(8, *domain.shape, device=device))
pictures = domain.to_stored(x)  # uint8 (8, 28, 28, 1)
domain.picture(pictures).save("example.png")
print(f"{len(pictures)} pictures in {nfe} evaluations of the network: example.png")

images = domains.channels_first(torch.tensor(pictures))  # uint8 (8, 1, 28, 28)
bits = likelihood.nll(score, sde, domain, images.to(device))
print(f"NLL {bits.mean():.2f} bits/dim")

t = torch.full((8,), 0.5, device=device)
noisy = x + sde.marginal_prob(x, t)[1][:, None, None, None] * torch.randn_like(x)
with exact_products():  # on CUDA without TF32
    asym, nasym = measure_asymmetry(score, noisy, t, vectors=4, estimator="skew")
print(f"At t = 0.5: Asym {asym.mean():.0f}, NAsym {nasym.mean():.5f}")
