"""The domain of a model: images, or points.

A domain defines the shape of a model's input, the storage format of samples, the conversions
between the two, the picture of samples, and the unit of the likelihood. `from_config` makes the
domain that ``config.data`` describes; a new domain is a class like these two and a branch there.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import ml_collections
import numpy as np

from utils import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Domain:
    """Base of `Images` and `Points`."""

    def require_shape(self, shape: tuple[int, ...], dataset: str) -> None:
        """Raise a UserError if the images or points of `dataset` have another `shape`."""
        if shape != self.shape:
            fields = ", ".join(f"data.{name}" for name in self.fields)
            raise UserError(
                f"The configuration describes {self.noun} of shape {self.shape} ({fields}), but "
                f"{dataset} holds {shape}; set these fields, or take a configuration of this data "
                "set."
            )

    def require_batch(self, batch: "np.ndarray | torch.Tensor", shape: tuple[int, ...]) -> None:
        """Raise a UserError unless `batch` holds values of `dtype`, shaped (B, *shape)."""
        kind = str(batch.dtype).removeprefix("torch.")
        if kind != self.dtype.name or tuple(batch.shape[1:]) != shape:
            raise UserError(
                f"The {self.noun} are {kind} of shape {(*batch.shape,)}; expected "
                f"{self.dtype.name} of shape (B, {', '.join(map(str, shape))})."
            )


def channels_first(images: "np.ndarray | torch.Tensor") -> "np.ndarray | torch.Tensor":
    """View stored samples (N, H, W, C) as (N, C, H, W), the layout of models and data sets."""
    return images.swapaxes(1, 3).swapaxes(2, 3)


def channels_last(images: "np.ndarray | torch.Tensor") -> "np.ndarray | torch.Tensor":
    """The inverse of `channels_first`."""
    return images.swapaxes(1, 3).swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Images(Domain):
    """8-bit images, stored as uint8 (N, C, H, W) in data sets and (N, H, W, C) as samples.

    `to_stored` converts a model's images to samples, `from_stored` samples to a model's images.

    Args:
        channels, height, width: C, H and W.
        random_flip: mirror half of the training images.
        centered: the model's range is [−1, 1], not [0, 1].
        uniform_dequantization: spread the values of training images over their bins.
    """

    channels: int
    height: int
    width: int
    random_flip: bool = False
    centered: bool = False
    uniform_dequantization: bool = False

    dtype = np.dtype(np.uint8)
    noun, unit, fields = "images", "img", ("num_channels", "image_size", "image_width")
    likelihood_name, likelihood_unit = "bits_per_dim", "bits/dim"
    # What a file's `meta` records of the domain; a file without it holds images.
    identity: ClassVar = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image in models and data sets."""
        return self.channels, self.height, self.width

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """The shape of one stored sample."""
        return self.height, self.width, self.channels

    def to_model(self, images: "torch.Tensor", *, train: bool) -> "torch.Tensor":
        """A batch in the model's range, on the device of `images`.

        Training images are flipped with probability 1/2 (random_flip) and dequantised to
        (u + 255x)/256 with u uniform in [0, 1) (uniform_dequantization); both draw from the
        device's default generator.

        Args:
            images: uint8 (B, C, H, W).

        Returns:
            float32 (B, C, H, W) in [0, 1], or in [-1, 1] if centered.
        """
        import torch

        if train and self.random_flip:
            flipped = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        x = images.float() / 255
        if train and self.uniform_dequantization:
            x = dequantise(x, torch.rand_like(x))
        return self.scaler(x)

    def to_density(self, images: "torch.Tensor", rand: Callable) -> "torch.Tensor":
        """`to_model` of dequantised images; their density bounds the 8-bit images' probability.

        `rand(shape)` draws the noise, uniform in [0, 1).
        """
        x = images.float() / 255
        return self.scaler(dequantise(x, rand(x.shape)))

    def scaler(self, x: "torch.Tensor") -> "torch.Tensor":
        """Map x from [0, 1] to the model's range."""
        return 2 * x - 1 if self.centered else x

    def inverse_scaler(self, x: "torch.Tensor") -> "torch.Tensor":
        """Map x from the model's range to [0, 1]."""
        return (x + 1) / 2 if self.centered else x

    def to_stored(self, x: "torch.Tensor") -> np.ndarray:
        """Samples (N, C, H, W) of the model as uint8 (N, H, W, C): 255x, clipped and truncated."""
        import torch

        pixels = (255 * self.inverse_scaler(x)).clamp(0, 255).to(torch.uint8)
        return channels_last(pixels).contiguous().cpu().numpy()

    def from_stored(self, samples: np.ndarray) -> "torch.Tensor":
        """Samples, uint8 (N, H, W, C), as float32 (N, C, H, W) in the model's range."""
        import torch

        self.require_batch(samples, self.stored_shape)
        return self.to_model(torch.tensor(channels_first(samples)), train=False)

    def share_outside(self, x: "torch.Tensor") -> float:
        """The share of values more than 0.1 outside [0, 1], which `to_stored` clips."""
        return ((self.inverse_scaler(x) - 0.5).abs() > 0.6).float().mean().item()

    def negative_log_likelihood(self, log_density: "torch.Tensor") -> "torch.Tensor":
        """Bits per dimension of 8-bit images from log-densities (B,) in the model's range.

        The offset accounts for the scaling of 0…255: 8 bits for [0, 1], 7 bits for [−1, 1].
        """
        dimensions = self.channels * self.height * self.width
        return -log_density / (dimensions * math.log(2)) + (7 if self.centered else 8)

    def picture(self, samples: np.ndarray, columns: int | None = None) -> "Image.Image":
        """A grid of uint8 samples (N, H, W, C), a PIL image; nearly square without `columns`.

        Images under 32 pixels are enlarged.
        """
        import torch
        from PIL import Image
        from torchvision.utils import make_grid

        columns = columns or max(1, int(len(samples) ** 0.5))
        grid = make_grid(channels_first(torch.from_numpy(samples)), nrow=columns, padding=1)
        picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
        zoom = max(1, 32 // samples.shape[1])
        size = (picture.width * zoom, picture.height * zoom)
        return picture.resize(size, Image.Resampling.NEAREST)


@dataclasses.dataclass(frozen=True)
class Points(Domain):
    """Points of D = `dimensions`, float32 (N, D) in data sets, models and samples."""

    dimensions: int

    dtype = np.dtype(np.float32)
    noun, unit, fields = "points", "pt", ("dimensions",)
    likelihood_name = likelihood_unit = "nats"
    identity: ClassVar = {"domain": "points"}

    @property
    def shape(self) -> tuple[int]:
        """The shape of one point."""
        return (self.dimensions,)

    stored_shape = shape

    def to_model(self, points: "torch.Tensor", *, train: bool) -> "torch.Tensor":
        """The points (B, D) themselves."""
        return points

    def to_density(self, points: "torch.Tensor", rand: Callable) -> "torch.Tensor":
        """The points (B, D) themselves."""
        return points

    def to_stored(self, x: "torch.Tensor") -> np.ndarray:
        """Samples (N, D) of the model as a float32 array."""
        return x.float().cpu().numpy()

    def from_stored(self, samples: np.ndarray) -> "torch.Tensor":
        """Samples (N, D) as a float32 tensor."""
        import torch

        return torch.tensor(samples, dtype=torch.float32)

    def share_outside(self, x: "torch.Tensor") -> float:
        """0: points have no range."""
        return 0.0

    def negative_log_likelihood(self, log_density: "torch.Tensor") -> "torch.Tensor":
        """Nats per point from log-densities (B,)."""
        return -log_density

    def picture(self, samples: np.ndarray, columns: int | None = None) -> "Image.Image":
        """A scatter plot of the first two coordinates of samples (N, D), a PIL image."""
        from matplotlib.figure import Figure
        from PIL import Image

        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        x, y = samples[:, 0], samples[:, 1] if samples.shape[1] > 1 else 0 * samples[:, 0]
        axes.scatter(x, y, s=4, linewidths=0)
        axes.set_aspect("equal", "datalim")
        axes.grid(alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        return Image.open(buffer).convert("RGB")


KINDS = {"images": Images, "points": Points}


def dequantise(x: "torch.Tensor", noise: "torch.Tensor") -> "torch.Tensor":
    """(u + 255x)/256 for 8-bit images x in [0, 1] and uniform noise u."""
    return (noise + 255 * x) / 256


def from_config(data: ml_collections.ConfigDict) -> Images | Points:
    """The domain that ``config.data`` describes: points if it has `dimensions`, else images."""
    if "dimensions" in data:
        return Points(data.dimensions)
    options = ("random_flip", "centered", "uniform_dequantization")
    return Images(
        data.num_channels,
        data.image_size,
        data.get("image_width") or data.image_size,
        **{name: data[name] for name in options if name in data},
    )


def of_stored(samples: np.ndarray) -> Images | Points:
    """The domain of stored samples: points if they are (N, D), else images."""
    if samples.ndim == 2:
        return Points(samples.shape[1])
    return Images(samples.shape[3], *samples.shape[1:3])


def images_of(data: ml_collections.ConfigDict, user: str) -> Images:
    """The domain of ``config.data``, which must be of images.

    Raises:
        UserError: it is not; the message begins with `user`, the name of what needs images.
    """
    return _of(Images, data, user)


def points_of(data: ml_collections.ConfigDict, user: str) -> Points:
    """The domain of ``config.data``, which must be of points; raises as `images_of`."""
    return _of(Points, data, user)


def _of(kind, data, user):
    domain = from_config(data)
    if not isinstance(domain, kind):
        raise UserError(
            f"{user} takes {kind.noun}, but config.data describes {domain.noun} ({data.dataset})."
        )
    return domain
