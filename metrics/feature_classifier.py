"""Features of a small classifier that is trained on a data set itself; see `extractors`."""

import hashlib
import pathlib

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from metrics.extractors import channels_first
from storage.files import atomic_write
from utils import UserError

SAVE_EVERY = 100  # steps of training


def _small_classifier(channels, classes):
    """Three convolutions and a pool to ClassifierFeatures.pool_width, then a linear layer."""

    def stage(wide_in, wide_out, stride):
        convolution = nn.Conv2d(wide_in, wide_out, 3, stride, padding=1, bias=False)
        return convolution, nn.BatchNorm2d(wide_out), nn.ReLU()

    width = ClassifierFeatures.pool_width
    stages = *stage(channels, 32, 1), *stage(32, 64, 2), *stage(64, width, 2)
    body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(width, classes))


def _scaled(images, device):
    """uint8 images (n, H, W, C) as floats (n, C, H, W) in [−1, 1] on `device`."""
    return channels_first(images, device).float().div(127.5).sub(1)


def train_small_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    device: torch.device,
    cache: pathlib.Path,
    steps: int = 1000,
    batch_size: int = 128,
) -> nn.Sequential:
    """Train the small classifier with Adam on uint8 images (N, H, W, C) and labels (N,).

    Equal data give equal weights on one machine with equally many threads. The state is written to
    `cache` every SAVE_EVERY steps and at the end; training on equal data continues from there.

    Raises:
        UserError: the cache exists and is not such a file.
    """
    with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
        torch.manual_seed(0)
        network = _small_classifier(images.shape[-1], int(labels.max()) + 1).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    parts = {"model": network, "optimizer": optimizer, "schedule": schedule}
    data = _digest([images, labels])
    done = _restore(parts, cache, data, steps)
    rng = np.random.default_rng(0)
    rng.integers(len(images), size=(done, batch_size))  # the draws of the finished steps
    for step in tqdm(range(done, steps), desc="feature classifier", unit="step"):
        index = rng.integers(len(images), size=batch_size)
        target = torch.from_numpy(labels[index].astype(np.int64)).to(device)
        loss = nn.functional.cross_entropy(network(_scaled(images[index], device)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            content = {name: part.state_dict() for name, part in parts.items()}
            with atomic_write(cache) as file:
                torch.save({"data": data, "step": step + 1, **content}, file)
    return network.eval()


def _restore(parts, cache, data, steps):
    """Load the state in the file `cache` if it was trained on `data`; returns its step."""
    if not cache.exists():
        return 0
    try:
        state = torch.load(cache, map_location="cpu", weights_only=True)
        if state["data"] != data:
            return 0
        for name in parts.keys() & state.keys():  # older files hold the final weights alone
            parts[name].load_state_dict(state[name])
        return state.get("step", steps)
    except Exception as error:  # a damaged file can fail anywhere
        raise UserError(
            f"{cache} does not hold a feature classifier ({error}); delete it to train it again."
        ) from None


def _digest(arrays):
    """SHA-256 of arrays: their shapes, types and values, read in chunks."""
    digest = hashlib.sha256()
    for array in map(np.atleast_1d, arrays):
        digest.update(f"{array.shape} {array.dtype}".encode())
        for start in range(0, len(array), 4096):
            digest.update(np.ascontiguousarray(array[start : start + 4096]))
    return digest.hexdigest()


class ClassifierFeatures:
    """Features and logits of a small classifier trained on a data set's own training split.

    Args:
        dataset: the data set's name, a part of the extractor's name.
        images, labels: the training split, uint8 (N, H, W, C) and integers (N,).
        device: where the network trains and runs.
        cache: the file of the training's state; it is replaced if it is of other data.

    Raises:
        UserError: the images are of one class, or the cache exists and is not such a file.
    """

    pool_width = 128

    def __init__(
        self,
        dataset: str,
        images: np.ndarray,
        labels: np.ndarray,
        device: torch.device,
        cache: pathlib.Path,
    ) -> None:
        if labels.min() == labels.max():
            raise UserError(
                f"All images of {dataset} are of one class, so no classifier can be trained; "
                "choose --config.eval.features=inception, with its weights downloaded or named by "
                "--config.eval.inception_weights, or --config.eval.features=dinov2."
            )
        self.network = train_small_classifier(images, labels, device, cache)
        self.logit_width = self.network[1].out_features
        weights = _digest(tensor.cpu().numpy() for tensor in self.network.state_dict().values())
        self.name = f"classifier-{dataset}-{weights[:8]}"
        self.device = device

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            pool = self.network[0](_scaled(images, self.device))
            return pool.cpu().numpy(), self.network[1](pool).cpu().numpy()
