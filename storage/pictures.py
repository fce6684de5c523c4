"""Samples as pictures: a grid of images, a scatter plot of points."""

from storage.files import atomic_write


def image_grid(images, columns):
    """uint8 images (N, H, W, C) as one picture (PIL); images under 32 pixels are enlarged."""
    import torch
    from PIL import Image
    from torchvision.utils import make_grid

    grid = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), nrow=columns, padding=1)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    zoom = max(1, 32 // images.shape[1])
    size = (picture.width * zoom, picture.height * zoom)
    return picture.resize(size, Image.Resampling.NEAREST)


def scatter_plot(points, side=5):
    """Points (N, D) by their first two coordinates as one picture (PIL), `side` inches wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    x, y = points[:, 0], points[:, 1] if points.shape[1] > 1 else 0 * points[:, 0]
    axes.scatter(x, y, s=4, linewidths=0)
    axes.set_aspect("equal", "datalim")
    axes.grid(alpha=0.3)
    return rendered(figure)


def rendered(figure):
    """A matplotlib figure as a picture (PIL)."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB")


def save_picture(path, picture):
    """Write a picture (PIL) as a PNG."""
    with atomic_write(path) as file:
        picture.save(file, format="PNG")
