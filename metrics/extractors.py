"""From uint8 images to the pooled features and logits that the metrics of evaluation.py compare.

`extract` streams any number of batches through an `Extractor`. The extractor's name says exactly
whose features these are; numbers are comparable where their names are equal, and it belongs beside
every one of them.

* `InceptionFeatures`: the FID Inception network of December 2015, torch-fidelity's PyTorch port.
* `TFHubFeatures`: the same network as TF-GAN runs it, a TF-Hub module.
* `DINOv2Features`: DINOv2's ViT-L/14 (Oquab et al., 2023, arXiv 2304.07193), torch-fidelity's.
* `feature_classifier.ClassifierFeatures`: a small network trained on the data set itself, for data
  that Inception says nothing about (8×8 digits), or where its weights are not to be had.

torch and TensorFlow are imported where they are used, so that each can be missing.
"""

import functools
import hashlib
import io
import os
import pathlib
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol
from unittest import mock

import numpy as np
from tqdm import tqdm

from metrics import oracles, sharing
from utils import UserError, is_first, rank_and_size

if TYPE_CHECKING:  # torch need not be there
    import torch

# pt_inception-2015-12-05, the weights that torch-fidelity and pytorch-fid publish.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TFHUB_INCEPTION = "https://tfhub.dev/tensorflow/tfgan/eval/inception/1"


class Extractor(Protocol):
    """Turns uint8 images (n, H, W, C) into float32 (n, pool_width) and (n, logit_width)."""

    name: str
    pool_width: int
    logit_width: int

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class Batch(NamedTuple):
    """A number of images, which ``read()`` returns: uint8 (rows, H, W, C)."""

    rows: int
    read: Callable[[], np.ndarray]


def batches_of(images: np.ndarray, size: int) -> list[Batch]:
    """`images` in batches of at most `size`."""
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return [Batch(len(part), functools.partial(np.asarray, part)) for part in parts]


def extract(
    extractor: Extractor, batches: Sequence[Batch], rows: int, together: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Stream images through `extractor` into arrays made once.

    Args:
        batches: each a `Batch`, or a `sample_sets.Round`; nothing of one is kept.
        rows: the most images that the extractor is given at a time, to bound its memory.
        together: the processes that torchrun started take a batch each in turn. The first has the
            rows of all in the end, the others theirs.

    Returns:
        Pooled features (N, pool_width) and logits (N, logit_width), float32.
    """
    rank, size = rank_and_size() if together else (0, 1)
    ends = np.cumsum([batch.rows for batch in batches]).tolist()
    pool = np.empty((ends[-1], extractor.pool_width), dtype=np.float32)
    logits = np.empty((ends[-1], extractor.logit_width), dtype=np.float32)
    parts = [slice(end - batch.rows, end) for batch, end in zip(batches, ends, strict=True)]
    bar = tqdm(
        total=ends[-1],
        desc=f"features {extractor.name}",
        unit="img",
        leave=None,
        delay=1,
        disable=not is_first(),
    )
    with bar:
        for number, (batch, part) in enumerate(zip(batches, parts, strict=True)):
            if number % size == rank:
                images = batch.read()
                pieces = np.array_split(images, -(-len(images) // rows))
                pieces = zip(*map(extractor, pieces), strict=True)
                pool[part], logits[part] = map(np.concatenate, pieces)
            bar.update(batch.rows)
    if together:
        sharing.collect((pool, logits), parts)
    return pool, logits


def in_colour(images: np.ndarray) -> np.ndarray:
    """`images` (n, H, W, 1 or 3) with three channels."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def hashed(path: str | os.PathLike, noun: str) -> tuple[bytes, str]:
    """The bytes of a file and their SHA-256; `noun` begins the sentence if it cannot be read."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{noun} {path} cannot be read ({error}).") from None
    return data, hashlib.sha256(data).hexdigest()


def plain_weights(data: bytes, path: str | os.PathLike) -> "dict[str, torch.Tensor]":
    """The state dict in the bytes of the weight file `path`, read weights-only."""
    import torch

    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is not a file of plain PyTorch weights ({error}).") from None


def channels_first(images: np.ndarray, device: "torch.device | str") -> "torch.Tensor":
    """A copy of images (n, H, W, C) as a tensor (n, C, H, W) on `device`.

    In one memory layout whatever that of `images`, because convolutions round differently in
    another; `contiguous` would leave images of one channel as they are.
    """
    import torch

    channels_first = torch.tensor(images, device=device).permute(0, 3, 1, 2)
    return channels_first.clone(memory_format=torch.contiguous_format)


# ---------------------------------------------------------------- Inception, torch-fidelity's


def download_inception_weights() -> pathlib.Path:
    """The published weights' path in torch.hub's cache, after downloading them where need be.

    Raises:
        UserError: the download fails or is not the published file; nothing is left behind.
    """
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

    path = pathlib.Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"The Inception weights could not be downloaded ({error}). Fetch {url} where "
                "there is a network and name the file with --config.eval.inception_weights, or "
                "take other features, such as --config.eval.features=classifier."
            ) from None
    return path


class InceptionFeatures:
    """The FID Inception network (2015-12-05) through torch-fidelity's port.

    Pooled features are `pool_3`, 2,048 wide. The 1,008 logits are those without the last layer's
    bias (torch-fidelity's `logits_unbiased`), as in the Inception score's first implementation
    (Salimans et al., 2016), whose graph and weights TF-GAN takes over. Images of any size are
    resized by the network itself, bilinearly, as in TensorFlow 1.

    Args:
        device: where the network runs.
        weights: a weight file; without it the cached or downloaded published one.
        trust_weights: accept a weight file that is not the published one.

    Raises:
        UserError: the weights are not to be had, not the published ones, or of another network.
    """

    pool_width, logit_width = 2048, 1008

    def __init__(
        self,
        device: "torch.device",
        weights: str | os.PathLike | None = None,
        trust_weights: bool = False,
    ) -> None:
        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = download_inception_weights() if weights is None else weights
        data, digest = hashed(path, "The Inception weights")
        published = digest == INCEPTION_SHA256
        if not published and not trust_weights:
            raise UserError(
                f"{path} has the SHA-256 {digest}; the published Inception weights have "
                f"{INCEPTION_SHA256}. Features of other weights are not comparable with published "
                "numbers: give the published file, or say that this one is meant (trust_weights)."
            )
        self.name = "inception-2015-12-05" if published else f"inception-{digest[:8]}"
        # torch-fidelity unpickles what it is given, so it is given only what was read safely.
        checked = io.BytesIO()
        torch.save(plain_weights(data, path), checked)
        checked.seek(0)
        try:
            network = FeatureExtractorInceptionV3(
                self.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=checked
            )
        except (RuntimeError, TypeError) as error:
            raise UserError(f"{path} does not hold the FID Inception network: {error}") from None
        self.device = device
        self.network = network.to(device)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from models.compute import exact_products

        batch = channels_first(in_colour(images), self.device)
        # cuDNN's default, TF32, keeps ten bits of each factor; the published features kept all.
        with torch.inference_mode(), exact_products():
            pool, logits = self.network(batch)
        return pool.cpu().numpy(), logits.cpu().numpy()


# ---------------------------------------------------------------- DINOv2, torch-fidelity's


class DINOv2Features:
    """The class token of DINOv2's ViT-L/14, 1,024 wide, through torch-fidelity; no logits.

    Fréchet distances on it agree better with people's judgement than Inception's (Stein et al.,
    NeurIPS 2023). The network's code must be in torch.hub's cache already: nothing is downloaded.

    Args:
        device: where the network runs.
        weights: the weight file, read weights-only; its hash is in the features' name.

    Raises:
        UserError: no file is named, it is of another network, or the network's code is not there.
    """

    pool_width, logit_width = 1024, 0

    def __init__(self, device: "torch.device", weights: str | os.PathLike | None) -> None:
        import torch
        from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

        code = pathlib.Path(torch.hub.get_dir()) / "facebookresearch_dinov2_main"
        if weights is None or not (code / "hubconf.py").exists():
            raise UserError(
                "The features dinov2 need the file dinov2_vitl14_pretrain.pth, named with "
                "--config.eval.dinov2_weights, and the network's code: "
                f"git clone https://github.com/facebookresearch/dinov2 {code}"
            )
        data, digest = hashed(weights, "The DINOv2 weights")
        network = torch.hub.load(str(code), "dinov2_vitl14", source="local", pretrained=False)
        try:
            network.load_state_dict(plain_weights(data, weights))
        except (RuntimeError, TypeError, AttributeError) as error:
            gist = " ".join(str(error).split())[:300]
            raise UserError(f"{weights} does not hold DINOv2's ViT-L/14: {gist}") from None
        # torch-fidelity would download both; its resizing and normalisation are what is wanted.
        with mock.patch.object(torch.hub, "load", return_value=network):
            extractor = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
        self.name = f"{extractor.name}-{digest[:8]}"
        self.device = device
        self.network = extractor.to(device)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from models.compute import exact_products

        with torch.inference_mode(), exact_products():
            (pool,) = self.network(channels_first(in_colour(images), self.device))
        return pool.cpu().numpy(), np.empty((len(images), 0), np.float32)


# ---------------------------------------------------------------- Inception, TF-GAN's


class TFHubFeatures:
    """The Inception network as TF-GAN runs it: a TF-Hub module with `pool_3` and `logits`.

    Images go in as (x − 127.5) / 127.5 at their own size, as in score SDEs' evaluation (Song et
    al., 2021, arXiv 2011.13456); torch-fidelity's port follows the original graph's (x − 128) / 128
    instead, so the two differ a little and carry different names.

    Args:
        module: TF-GAN's module by default; a path or another address of one of the same outputs.

    Raises:
        UserError: TensorFlow Hub does not import, or the module cannot be loaded.
    """

    pool_width, logit_width = 2048, 1008

    def __init__(self, module: str = TFHUB_INCEPTION) -> None:
        tensorflow_hub = oracles.load("tensorflow_hub", "TensorFlow Hub")
        try:
            self.module = tensorflow_hub.load(module)
        except (OSError, ValueError) as error:
            raise UserError(f"The TF-Hub module {module} cannot be loaded ({error}).") from None
        self.name = "inception-tfhub" if module == TFHUB_INCEPTION else f"tfhub-{module}"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import tensorflow as tf

        outputs = self.module((tf.cast(in_colour(images), tf.float32) - 127.5) / 127.5)
        pool, logits = outputs["pool_3"].numpy(), outputs["logits"].numpy()
        return pool.reshape(len(images), -1), logits.reshape(len(images), -1)
