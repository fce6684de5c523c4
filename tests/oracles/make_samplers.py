"""Write tests/golden_samplers: what other packages' samplers return on the same problems.

Run from the repository's root, in an environment that has them beside this repository's packages:

    pip install azula==0.11.1 diffusers==0.42.1 torchsde
    pip install --no-deps k-diffusion==0.1.1.post1
    PYTHONPATH=.:tests python tests/oracles/make_samplers.py

Their samplers are called, not copied; D is ours. Levels end before 0, and so before the last step,
where a package treats that step in another way.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch
from azula.sample import zABSampler
from diffusers import UniPCMultistepScheduler
from oracles.problems import CHURN, PROBLEMS, SIGMAS, Noise

FOLDER = pathlib.Path(__file__).parent.parent / "golden_samplers"


def k_diffusion():
    """k_diffusion.sampling without the package's own imports, which need a dozen more packages."""
    package = types.ModuleType("k_diffusion")
    package.__path__ = importlib.util.find_spec("k_diffusion").submodule_search_locations
    package.utils = types.ModuleType("k_diffusion.utils")
    package.utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    modules = {"k_diffusion": package, "k_diffusion.utils": package.utils}
    with mock.patch.dict(sys.modules, modules):
        return importlib.import_module("k_diffusion.sampling")


def from_k_diffusion(problem):
    """Name -> samples of k-diffusion."""
    k = k_diffusion()
    to_end = torch.tensor([*SIGMAS, 0.0], dtype=torch.float64)
    x = problem.start()

    def model(x, sigma):
        return problem.denoiser(x, sigma[0].item())

    def call(name, sigmas=to_end, **options):
        return getattr(k, f"sample_{name}")(model, x, sigmas, disable=True, **options)

    yield "euler", call("euler")
    yield "heun", call("heun")
    yield "deis", call("lms", to_end[:-1])
    yield "dpmpp_2m", call("dpmpp_2m")
    noise = Noise(1)
    options = {"noise_sampler": lambda sigma, following: noise.randn_like(x)}
    yield "dpmpp_2m_sde", call("dpmpp_2m_sde", **options)
    noise = Noise(1)
    yield "dpmpp_2m_sde_eta2", call("dpmpp_2m_sde", eta=2.0, **options)
    # It draws at every step, and uses what it drew between s_tmin and s_tmax.
    draws = Noise(1)
    inside = [CHURN["s_tmin"] <= sigma <= CHURN["s_tmax"] for sigma in SIGMAS]
    noises = [draws.randn_like(x) if used else torch.zeros_like(x) for used in inside]
    with mock.patch.object(torch, "randn_like", side_effect=noises):
        yield "churn", call("heun", **CHURN)


def from_diffusers(problem):
    """Name -> samples of diffusers' UniPC, of which the predictor alone is DPM-Solver++(3M)."""
    steps = len(SIGMAS) - 1
    for name, uncorrected in (("unipc", []), ("dpmpp_3m", list(range(steps)))):
        scheduler = UniPCMultistepScheduler(
            solver_order=3,
            solver_type="bh2",
            prediction_type="sample",
            lower_order_final=False,
            disable_corrector=uncorrected,
        )
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
        # Its x is variance-preserving.
        scales = [1 / (1 + sigma**2) ** 0.5 for sigma in SIGMAS]
        x = scales[0] * problem.start()
        for sigma, scale, timestep in zip(SIGMAS, scales, scheduler.timesteps):
            D = problem.denoiser(x / scale, sigma)
            x = scheduler.step(D, timestep, x).prev_sample
        yield name, x / scales[-1]


class AzulaDenoiser(torch.nn.Module):
    """D as azula asks for it; the time is σ."""

    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def schedule(self, t):
        return torch.ones_like(t), t

    def forward(self, x, t):
        return types.SimpleNamespace(mean=self.problem.denoiser(x, t.item()))


class AzulaLevels(zABSampler):
    """Its Adams-Bashforth sampler on our levels."""

    timesteps = torch.tensor(SIGMAS, dtype=torch.float64)


def from_azula(problem):
    """Name -> samples of azula."""
    sampler = AzulaLevels(AzulaDenoiser(problem), order=4, silent=True)
    yield "deis", sampler(problem.start())


def main():
    sources = {
        "k-diffusion": from_k_diffusion,
        "diffusers": from_diffusers,
        "azula": from_azula,
    }
    for package, source in sources.items():
        version = importlib.metadata.version(package)
        for name, problem in PROBLEMS.items():
            arrays = {method: samples.numpy() for method, samples in source(problem)}
            np.savez(FOLDER / f"{package}_{name}.npz", version=version, **arrays)


if __name__ == "__main__":
    main()
