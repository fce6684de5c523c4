"""Sets of points in the plane, drawn from a seed.

The moons are those of Chao et al. (ICLR 2022), the others those of Chao et al. (ICML 2023).
"""

import functools
import math
from collections.abc import Callable

import ml_collections
import numpy as np

import domains
from readers.common import Block, Source
from utils import random_stream, stream_key

RULE = 3  # version of the draws; a new version rebuilds caches


def points(
    data: ml_collections.ConfigDict, split: str, *, draw: Callable, classes: int = 1
) -> Source:
    """`data.num_points` points (n, 2) and their labels, drawn by `draw(generator, n)`.

    ``data.data_seed`` and the split determine the random stream.

    Raises:
        UserError: the configuration does not describe points.
    """
    domains.points_of(data, f"The data set {data.dataset}")
    count = data.num_points
    stream = "points", data.data_seed, split == "test"
    blocks = _blocks(functools.partial(draw, random_stream(*stream), count))
    identity = [f"{count} from {stream_key(*stream)}, rule {RULE}"]
    return Source((2,), classes, blocks, identity, count, domains.Points.dtype)


def _blocks(draw):
    x, labels = draw()
    yield Block(x.astype(domains.Points.dtype), labels.astype(np.int64))


def moons(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half-circles without noise, centred, × 20; labels: upper 0, lower 1."""
    from sklearn.datasets import make_moons

    x, labels = make_moons(count, noise=None, shuffle=False)
    order = rng.permutation(count)
    return 20 * (x - x.mean(0))[order], labels[order]


def checkerboard(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform on every other square of side 3, by row and column, in [−6, 6]²."""
    x = rng.uniform(-2, 2, count)
    y = rng.random(count) - 2 * rng.integers(2, size=count) + np.floor(x) % 2
    return 3 * np.stack([x, y], axis=1), np.zeros(count)


def gaussian_8(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight Gaussians of standard deviation 1/√2 on a circle of radius 8/√2."""
    angles = rng.integers(8, size=count) * math.pi / 4
    centres = 8 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (rng.standard_normal((count, 2)) + centres) / math.sqrt(2), np.zeros(count)


def spiral_2(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two spirals (−n cos n, n sin n), n = 3π√U, widened by uniform noise, × 2.3/3.

    The points alternate between the arms, so that the first points are of both.
    """
    n = np.sqrt(rng.random(count)) * 3 * math.pi
    arm = np.stack([-n * np.cos(n), n * np.sin(n)], axis=1) + rng.random((count, 2)) / 2
    sign = 1 - 2 * (np.arange(count) % 2)[:, None]
    return sign * arm * 2.3 / 3, np.zeros(count)
