"""Images as pictures: a grid of them as one PNG."""

import pathlib

import numpy as np
from PIL import Image

from storage.files import atomic_write


def image_grid(images: np.ndarray, columns: int) -> Image.Image:
    """uint8 images (N, H, W, C) as one picture (PIL); images under 32 pixels are enlarged."""
    import torch
    from torchvision.utils import make_grid

    grid = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), nrow=columns, padding=1)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    zoom = max(1, 32 // images.shape[1])
    size = (picture.width * zoom, picture.height * zoom)
    return picture.resize(size, Image.Resampling.NEAREST)


def save_image_grid(path: pathlib.Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write `image_grid` of the images as a PNG; nearly square unless `columns` are given."""
    picture = image_grid(images, columns or max(1, int(len(images) ** 0.5)))
    with atomic_write(path) as file:
        picture.save(file, format="PNG")
