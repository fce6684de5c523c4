"""How the published code computes what `studies.speed` times, where ours does otherwise."""

import contextlib
import math
from unittest import mock

import numpy as np
import scipy.integrate
import torch
import torch.nn.functional as F

import sde_lib
from models import double_backward, layers, resampling
from models.compute import exact_products


def resample(x, kernel, pads, up=1, down=1):
    """`resampling.fir_resample`: put in zeros, convolve, keep every other pixel."""
    rows, channels, height, width = x.shape
    k = torch.tensor(kernel, device=x.device, dtype=x.dtype)
    k = torch.outer(k, k).flip(0, 1) * (up / k.sum()) ** 2
    x = x.reshape(-1, 1, height, 1, width, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(-1, 1, height * up, width * up)
    x = F.conv2d(F.pad(x, (*pads, *pads)), k[None, None])[..., ::down, ::down]
    return x.reshape(rows, channels, *x.shape[-2:])


def attention(q, k, v, tangents=0):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v


def dropout_mask(shape, probability, device, channels_last):
    # As PyTorch's own draws it on a CPU. On a GPU that has one kernel for all of dropout.
    return torch.empty(shape, device=device).bernoulli_(1 - probability).bool()


def normalise(norm, x, shortcut=None, relu=True):
    y = torch.nn.BatchNorm2d.forward(norm, x)
    y = y if shortcut is None else y + shortcut
    return F.relu(y) if relu else y


@contextlib.contextmanager
def published_layers(device):
    """Within the context networks have the published code's layers where ours compute otherwise."""
    # On a GPU the published code resamples by a CUDA kernel of its own, which is not at hand.
    resampler = resample if device.type == "cpu" else resampling.fir_resample
    with (
        exact_products(),
        mock.patch.object(resampling, "fir_resample", resampler),
        mock.patch.object(layers, "attention", attention),
        mock.patch.object(layers, "dropout_mask", dropout_mask),
        mock.patch.object(double_backward.BatchNorm2d, "normalise", normalise),
    ):
        yield


def bits_ode(sde, score, x, epsilon, rtol, atol):
    """RK45 on the host, with one pass for the drift and another, with its backward, for div."""
    reverse = sde_lib.ReverseSDE(sde, score, probability_flow=True)

    def drift(x, t):
        return reverse.sde(x, t)[0]

    def field(time, state):
        state = torch.from_numpy(state).to(x.device, torch.float32)
        at = state[: x.numel()].view(x.shape)
        t = torch.full((len(x),), time, device=x.device)
        with torch.no_grad():
            velocity = drift(at, t)
        at.requires_grad_()
        (vjp,) = torch.autograd.grad((drift(at, t) * epsilon).sum(), at)
        divergence = (vjp * epsilon).flatten(1).sum(1)
        return torch.cat([velocity.flatten(), divergence]).double().cpu().numpy()

    start = np.concatenate([x.cpu().numpy().ravel(), np.zeros(len(x))])
    times = (sde.likelihood_eps, sde.T)
    end = scipy.integrate.solve_ivp(field, times, start, rtol=rtol, atol=atol, method="RK45")
    last = torch.from_numpy(end.y[:, -1].copy())
    return sde.prior_logp(last[: x.numel()].view(x.shape)) + last[x.numel() :]
