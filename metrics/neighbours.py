"""Which samples lie in the spheres that reach from each sample to its k-th nearest neighbour.

Distances between sets of features (N, D) are decided in two steps. Blocks of one matrix product, in
bfloat16 on processors that have it, bound every distance from below; the few pairs whose bound
leaves the question open are measured in float64. As in scikit-learn, and so in `prdc`, distances
between float32 features are then rounded to float32, which makes equal distances compare as equal;
those between float64 features are not.
"""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from utils import UserError

SPARE = 9  # candidates for neighbours beyond those wanted
CROWDED = 16  # a block is measured whole if one pair in so many is open
TINY = 1e-30
CHUNK = 256  # rows taken to float64 at a time, few enough for a cache


def block_side(width: int, block_bytes: int) -> int:
    """The largest s for which a block of (s, s) distances of D-wide features fits `block_bytes`.

    Two float64 copies of (s, D) rows, and for every pair, where all are open, its indices, its
    distance, that one's rounding bound and terms, all of 8 bytes, and the lower bound of 4.

    Raises:
        UserError: not even one pair fits.
    """
    per_row, per_pair = 2 * 8 * width, 48
    side = int((math.sqrt(per_row**2 + 4 * per_pair * block_bytes) - per_row) / (2 * per_pair))
    if side < 1:
        raise UserError(
            f"block_bytes is {block_bytes}; features {width} wide need at least "
            f"{per_row + per_pair}."
        )
    return side


def slices(count: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, count)) for start in range(0, count, side)]


@dataclasses.dataclass(frozen=True)
class Features:
    """Features x (N, D), beside them centred, scaled and rounded to x̃.

    Attributes:
        exact: x (N, D), in host memory.
        rows: x̃ (N, D).
        squares: |x̃|² (N,), shrunk by the error of a bound.
        slack: at least |x̃ − x| (N,).
    """

    exact: torch.Tensor
    rows: torch.Tensor
    squares: torch.Tensor
    slack: torch.Tensor

    def __len__(self) -> int:
        return len(self.exact)

    def __getitem__(self, part: slice) -> "Features":
        return Features(self.exact[part], self.rows[part], self.squares[part], self.slack[part])

    def bounds(self, other: "Features") -> torch.Tensor:
        """Lower bounds (N, M) of |x̃ − ỹ|² = |x̃|² + |ỹ|² − 2x̃ỹ."""
        products = (self.rows @ other.rows.T).float()
        return torch.add(self.squares[:, None] + other.squares, products, alpha=-2)


class Distances:
    """Distances between the rows of feature sets (N, D), in blocks of `side` rows on `device`.

    They are decided by |x − y| ≥ |x̃ − ỹ| − |x̃ − x| − |ỹ − y| with the rounded rows of `Features`.
    """

    def __init__(self, sets: Sequence[np.ndarray], side: int, device: torch.device | str) -> None:
        self.side, self.device = side, device
        # Around the centre bounds are tightest, and at the scale 1 no square overflows.
        self.centre = np.mean(sets[0], axis=0, dtype=np.float64)
        extremes = np.stack([extreme(x, axis=0) for x in sets for extreme in (np.min, np.max)])
        self.scale = TINY + float(np.abs(extremes - self.centre).max())
        self.type = filter_type(torch.device(device))
        # The sum of n products is right to n·u·(|x̃|² + |ỹ|²)/2, u being float32's unit of rounding,
        # and to bfloat16's when it is rounded; the squares are right to n·u. Twice that.
        units = torch.finfo(torch.float32).eps / 2 * (len(self.centre) + 16)
        self.shrink = 1 - 4 * units - torch.finfo(self.type).eps
        float32 = all(x.dtype == np.float32 for x in sets)
        self.rounded = torch.float32 if float32 else torch.float64

    def features(self, x: np.ndarray) -> Features:
        """The `Features` of the array `x` (N, D)."""
        parts = []
        for part in slices(len(x), CHUNK):
            scaled = torch.from_numpy((x[part] - self.centre) / self.scale).to(self.device)
            rows = scaled.to(self.type)
            squares = self.shrink * rows.float().square().sum(1) - TINY
            slack = torch.linalg.vector_norm(rows - scaled, dim=1).float()
            parts.append((rows, squares, slack))
        with warnings.catch_warnings():  # a memory map cannot be written, and is not
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            exact = torch.from_numpy(np.ascontiguousarray(x))
        return Features(exact, *(torch.cat(values) for values in zip(*parts)))

    def limit(self, radii: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """What |x̃ − ỹ|² must be below for |x − y| to be below one of `radii`."""
        return ((radii / self.scale + slack) * (1 + 1e-6)).square().float()

    def block(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """All distances (n, m) between the features `a` (n, D) and `b` (m, D) on the host.

        |a|² + |b|² − 2ab in float64. What cannot be told from 0 there is 0, so that copies of one
        sample are at no distance whatever the BLAS.
        """
        a, b = a.to(self.device).double(), b.to(self.device).double()
        squares = a.square().sum(1)[:, None] + b.square().sum(1)
        squared = (a @ b.T).mul_(-2).add_(squares)
        rounding_bound = squares.mul_((a.shape[1] + 1) * np.finfo(np.float64).eps)
        squared.masked_fill_(squared < rounding_bound, 0)
        return squared.to(self.rounded).sqrt_().double()

    def pairs(
        self, a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """The distances (n, k) of ``a[rows]``, rows (n,), to ``b[columns]``, columns (n, k).

        `a` and `b` are features (N, D) and (M, D) on the host.
        """
        count, each = columns.shape
        found = torch.empty((count, each), dtype=torch.float64, device=self.device)
        rows, columns = rows.cpu(), columns.cpu()
        for part in slices(count, max(1, CHUNK // each)):
            x = a.index_select(0, rows[part]).to(self.device).double()
            y = b.index_select(0, columns[part].flatten()).to(self.device).double()
            difference = y.view(-1, each, b.shape[1]).sub_(x[:, None])
            squares = torch.linalg.vecdot(difference, difference)
            found[part] = squares.to(self.rounded).sqrt().double()
        return found

    def radii(self, x: Features, nearest_k: int, name: str) -> torch.Tensor:
        """Distance (N,) of each of the `Features` `x` (N, D) to its k-th nearest neighbour."""
        count = len(x)
        # One more than k, because every sample is its own nearest.
        kept = min(nearest_k + 1 + SPARE, count)
        bounds = torch.full((count, kept), math.inf, device=self.device)
        indices = torch.zeros((count, kept), dtype=torch.int64, device=self.device)
        blocks = slices(count, self.side)
        with progress(f"distances, {name}", len(blocks) * (len(blocks) + 1) // 2) as bar:
            for number, rows in enumerate(blocks):
                for columns in blocks[number:]:
                    block = x[rows].bounds(x[columns])
                    keep_smallest(bounds, indices, rows, block, columns.start)
                    if rows != columns:
                        keep_smallest(bounds, indices, columns, block.T, rows.start)
                    bar.update()
        distances = self.pairs(x.exact, x.exact, torch.arange(count), indices)
        radii = distances.sort(1).values[:, nearest_k].contiguous()
        if kept == count:
            return radii
        # What was not kept is no nearer than the largest bound that was; a radius of 0 is certain.
        limits = self.limit(radii, x.slack + x.slack.max())
        is_open = (bounds.amax(1) < limits) & (radii > 0)
        for chosen in is_open.nonzero().squeeze(1).split(self.side):
            best = torch.full((len(chosen), nearest_k + 1), math.inf, device=self.device).double()
            for columns in blocks:
                block = self.block(x.exact[chosen.cpu()], x.exact[columns])
                best = torch.cat([best, block], 1).topk(nearest_k + 1, 1, largest=False).values
            radii[chosen] = best.amax(1)
        return radii

    def spheres(
        self, a: Features, b: Features, radii_a: torch.Tensor, radii_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which of the `Features` `a` (N, D) and `b` (M, D) lie within each other's radii.

        The radii are (N,) and (M,), one for each sample.

        Returns:
            For each of `b` the number of a's spheres around it (M,); whether each of `a` has one of
            `b` in its sphere (N,); whether each of `a` lies in one of b's (N,).
        """
        around_b = torch.zeros(len(b), dtype=torch.int64, device=self.device)
        covered = torch.zeros(len(a), dtype=torch.bool, device=self.device)
        recalled = torch.zeros_like(covered)
        limits_a = self.limit(radii_a, a.slack + b.slack.max())
        limits_b = self.limit(radii_b, b.slack + a.slack.max())
        blocks_a, blocks_b = slices(len(a), self.side), slices(len(b), self.side)
        with progress("distances, real–generated", len(blocks_a) * len(blocks_b)) as bar:
            for rows, columns in itertools.product(blocks_a, blocks_b):
                bounds = a[rows].bounds(b[columns])
                is_open = bounds < torch.maximum(limits_a[rows, None], limits_b[columns])
                i, j = is_open.nonzero(as_tuple=True)
                if CROWDED * len(i) > is_open.numel():
                    distances = self.block(a.exact[rows], b.exact[columns])[i, j]
                else:
                    distances = self.pairs(a.exact[rows], b.exact[columns], i, j[:, None])[:, 0]
                i, j = i + rows.start, j + columns.start
                in_a, in_b = distances < radii_a[i], distances < radii_b[j]
                around_b += torch.bincount(j[in_a], minlength=len(b))
                covered[i[in_a]] = True
                recalled[i[in_b]] = True
                bar.update()
        return around_b, covered, recalled


def filter_type(device: torch.device) -> torch.dtype:
    """The type to bound distances in: the fastest whose products a device sums in float32."""
    # Not on GPUs: PyTorch lets CUDA add up bfloat16 products in bfloat16.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and device.type == "cpu" else torch.float32


def keep_smallest(
    bounds: torch.Tensor, indices: torch.Tensor, rows: slice, block: torch.Tensor, start: int
) -> None:
    """Keep the smallest of `bounds` (N, n) in `rows` and of `block` (rows, m), with their indices.

    The first column of `block` is number `start`.
    """
    kept = bounds.shape[1]
    values, found = block.topk(min(kept, block.shape[1]), dim=1, largest=False)
    values = torch.cat([bounds[rows], values], 1)
    found = torch.cat([indices[rows], found + start], 1)
    bounds[rows], order = values.topk(kept, dim=1, largest=False)
    indices[rows] = found.gather(1, order)


def progress(what: str, blocks: int) -> tqdm:
    """A progress bar, if it takes long; no more than one at a time."""
    return tqdm(desc=what, total=blocks, unit="block", leave=None, delay=1)
