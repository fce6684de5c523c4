"""A `UNet2DModel` of the package diffusers as a score network of the SDE ``ddpm``.

Its Jacobian-vector products are taken by `torch.func.jvp` (`models.jvp`).
"""

import json

import ml_collections
import torch
from torch import nn

import domains
import sde_lib
from models.labels import NO_LABEL
from storage.pipelines import library
from utils import UserError, lookup, take


def _of_noise(out, x, scale, std):
    return out


def _of_velocity(out, x, scale, std):
    return scale * out + std * x


PREDICTIONS = {"epsilon": _of_noise, "v_prediction": _of_velocity}
"""``config.model.prediction_type`` -> ε of a network's output at x = scale·data + std·ε.

The velocity is v = scale·ε − std·data (Salimans and Ho, ICLR 2022, appendix D).
"""


class DiffusersUNet(nn.Module):
    """ε(x, step), shaped as x (B, C, H, W) in [−1, 1], at integer or fractional DDPM steps (B,).

    The score is −ε/std, see `sde_lib.DDPM.conditioning`. A class-conditional network takes labels
    (B,). For `NO_LABEL` the class is the network's last one if it has one more than `num_classes`;
    otherwise no class embedding is added.

    Args:
        unet: the `UNet2DModel`.
        prediction: one of `PREDICTIONS`.
        num_classes: None for a network that takes no labels.
    """

    def __init__(
        self,
        unet: nn.Module,
        sde: sde_lib.DDPM,
        prediction: str,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.sde = unet, sde
        self.to_noise = lookup(PREDICTIONS, prediction, "config.model.prediction_type")
        classes = unet.config.num_class_embeds
        if num_classes not in ((None,) if classes is None else (classes, classes - 1)):
            raise UserError(
                f"config.model.num_classes is {num_classes}, but the UNet2DModel has {classes} "
                "class embeddings; set it to their number, to one less if the last of them is of "
                "images without a label, or leave it out if there are none."
            )
        self.takes_labels = classes is not None
        if self.takes_labels:
            width = unet.class_embedding.embedding_dim
            unet.class_embedding = ClassEmbedding(classes, width, num_classes < classes)

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "DiffusersUNet":
        """The freshly initialised network that ``config.model`` describes.

        Raises:
            UserError: it is not described yet, of another kind, or the package is missing.
        """
        model, domain = config.model, domains.images_of(config.data, "The model diffusers")
        sde = sde_lib.from_config(config)
        if not isinstance(sde, sde_lib.DDPM):
            raise UserError("The model diffusers needs config.training.sde=ddpm.")
        if model.unet is None:
            raise UserError(
                "The model diffusers needs existing weights; name their directory, or their name "
                "on the Hugging Face hub, with --config.model.pretrained."
            )
        options = {**json.loads(model.unet), "dropout": model.dropout}
        unet = library().UNet2DModel.from_config(options)
        if {unet.config.in_channels, unet.config.out_channels} != {domain.channels}:
            raise UserError(
                f"The UNet2DModel has {unet.config.in_channels} channels in and "
                f"{unet.config.out_channels} out; expected config.data.num_channels, "
                f"{domain.channels}."
            )
        return cls(unet, sde, model.prediction_type, **take(model, ["num_classes"]))

    def forward(
        self, x: torch.Tensor, step: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        options = {}
        if self.takes_labels:
            if labels is None:
                labels = torch.full_like(step, NO_LABEL, dtype=torch.long)
            options["class_labels"] = labels
        out = self.unet(x, step, return_dict=False, **options)[0].to(x.dtype)
        t = step / (self.sde.length - 1)
        scale, std = self.sde.marginal_prob(torch.ones_like(t), t)
        return self.to_noise(out, x, sde_lib.expand(scale, x), sde_lib.expand(std, x))


class ClassEmbedding(nn.Embedding):
    """Embedding vectors (B, width) of labels y (B,).

    That of `NO_LABEL` is the last one if `last_is_none`, else zero.
    """

    def __init__(self, classes: int, width: int, last_is_none: bool) -> None:
        super().__init__(classes, width)
        self.last_is_none = last_is_none

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        vectors = super().forward(labels % self.num_embeddings)
        if self.last_is_none:
            return vectors
        return vectors * (labels != NO_LABEL)[:, None].to(vectors.dtype)
