"""From uint8 images to the pooled features and logits that the metrics of evaluation.py compare.

Every number names its extractor; only numbers with equal names are comparable.

* `inception`: the FID Inception network of December 2015, torch-fidelity's PyTorch port.
* `TFHubFeatures`: the same network as TF-GAN runs it, a TF-Hub module.
* `dinov2`: DINOv2's ViT-L/14 (Oquab et al., 2023, arXiv 2304.07193), torch-fidelity's.
* `feature_classifier.ClassifierFeatures`: a small network trained on the data set itself, for data
  unlike Inception's training images (8×8 digits), or without Inception's weights.

torch-fidelity and TensorFlow are imported on first use, so that each is optional.
"""

import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

import domains
from metrics import sharing
from models.compute import exact_products
from storage import checkpoints
from utils import UserError, is_first, rank_and_size

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


def encode(extractor: Extractor, images: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features (n, pool_width) and logits (n, logit_width) of images (n, H, W, C), float32.

    The extractor takes at most `rows` images at a time, to bound its memory.
    """
    parts = [extractor(part) for part in np.array_split(images, -(-len(images) // rows))]
    pool, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return pool, logits


def encode_batches(
    extractor: Extractor, batches: Sequence[Batch], rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the `encode` of each batch on rank 0; the other ranks share the work, yield nothing.

    Args:
        batches: each a `Batch`, or a `sample_sets.SampleFile`; a rank reads only its own share.
    """
    rank, size = rank_and_size()
    bar = tqdm(
        total=sum(batch.rows for batch in batches),
        desc=f"features {extractor.name}",
        unit="img",
        leave=None,
        delay=1,
        disable=not is_first(),
    )
    with bar:
        for start in range(0, len(batches), size):
            group = batches[start : start + size]
            local = encode(extractor, group[rank].read(), rows) if rank < len(group) else None
            for batch, features in zip(group, sharing.gather(local)):
                bar.update(batch.rows)
                yield features


def in_colour(images: np.ndarray) -> np.ndarray:
    """`images` (n, H, W, 1 or 3) with three channels."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def read_weights(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict in a file, and the file's SHA-256; raises as `checkpoints.read`."""
    state = checkpoints.read(path)["model"]
    return state, hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def channels_first(images: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """A copy of images (n, H, W, C) as a tensor (n, C, H, W) on `device`.

    The memory layout is always the same, since convolutions round differently in another one;
    `contiguous` would not change the layout of images of one channel.
    """
    copy = domains.channels_first(torch.tensor(images, device=device))
    return copy.clone(memory_format=torch.contiguous_format)


# ---------------------------------------------------------------- torch-fidelity's networks


@dataclasses.dataclass(frozen=True)
class FidelityFeatures:
    """An `Extractor` of torch-fidelity: its network gives the features, and the logits if any."""

    name: str
    pool_width: int
    logit_width: int
    network: torch.nn.Module
    device: torch.device

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = channels_first(in_colour(images), self.device)
        # cuDNN's default, TF32, rounds factors to ten bits; the published features use float32.
        with torch.inference_mode(), exact_products():
            pool, *logits = (output.cpu().numpy() for output in self.network(batch))
        return pool, logits[0] if logits else np.empty((len(images), 0), np.float32)


def inception_file() -> pathlib.Path:
    """The published weights' path in torch.hub's cache."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

    return pathlib.Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def download_inception_weights() -> pathlib.Path:
    """`inception_file`, which is downloaded if it is not there.

    Raises:
        UserError: the download fails or is not the published file; nothing is left behind.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

    path = inception_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"The Inception weights could not be downloaded ({error}). Fetch {url} where "
                "there is a network and name the file with --config.eval.inception_weights. Other "
                "features: --config.eval.features=dinov2 or, of images in classes, classifier."
            ) from None
    return path


def inception(device: torch.device, weights: str | os.PathLike | None = None) -> FidelityFeatures:
    """The FID Inception network (2015-12-05) through torch-fidelity's port.

    Pooled features are `pool_3`, 2,048 wide. The 1,008 logits are those without the last layer's
    bias (torch-fidelity's `logits_unbiased`), as in the Inception score's first implementation
    (Salimans et al., 2016), whose graph and weights TF-GAN uses. The network resizes images itself,
    bilinearly, as in TensorFlow 1.

    Args:
        weights: a weight file; None: the cached or downloaded published one. The features of any
            other file have its hash in their name, and are not comparable with published ones.

    Raises:
        UserError: the weights are missing or of another network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = download_inception_weights() if weights is None else weights
    state, digest = read_weights(path)
    published = digest == INCEPTION_SHA256
    name = "inception-2015-12-05" if published else f"inception-{digest[:8]}"
    # torch-fidelity unpickles what it is given, so it gets a copy of the tensors alone.
    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    outputs = ["2048", "logits_unbiased"]
    try:
        network = FeatureExtractorInceptionV3(name, outputs, feature_extractor_weights_path=checked)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path} does not hold the FID Inception network: {error}") from None
    return FidelityFeatures(name, 2048, 1008, network.to(device), device)


def dinov2(device: torch.device, weights: str | os.PathLike | None) -> FidelityFeatures:
    """The class token of DINOv2's ViT-L/14, 1,024 wide, through torch-fidelity; no logits.

    Fréchet distances on it agree better with human judgement than on Inception (Stein et al.,
    NeurIPS 2023). The network's code must be in torch.hub's cache already: nothing is downloaded.

    Raises:
        UserError: no file is named, it is of another network, or the network's code is missing.
    """
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    code = pathlib.Path(torch.hub.get_dir()) / "facebookresearch_dinov2_main"
    if weights is None or not (code / "hubconf.py").exists():
        raise UserError(
            "The features dinov2 need the file dinov2_vitl14_pretrain.pth, named with "
            "--config.eval.dinov2_weights, and the network's code: "
            f"git clone https://github.com/facebookresearch/dinov2 {code}"
        )
    state, digest = read_weights(weights)
    network = torch.hub.load(str(code), "dinov2_vitl14", source="local", pretrained=False)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        gist = " ".join(str(error).split())[:300]
        raise UserError(f"{weights} does not hold DINOv2's ViT-L/14: {gist}") from None
    # torch-fidelity would download both; only its resizing and normalisation are used.
    with mock.patch.object(torch.hub, "load", return_value=network):
        extractor = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    return FidelityFeatures(f"{extractor.name}-{digest[:8]}", 1024, 0, extractor.to(device), device)


# ---------------------------------------------------------------- Inception, TF-GAN's


class TFHubFeatures:
    """The Inception network as TF-GAN runs it: a TF-Hub module with `pool_3` and `logits`.

    Images are scaled to (x − 127.5) / 127.5 at their own size, as in score_sde's evaluation (Song
    et al., 2021, arXiv 2011.13456); torch-fidelity's port has the original graph's (x − 128) / 128
    instead, so that the two differ a little and have different names.

    Raises:
        UserError: TensorFlow Hub does not import, or the module cannot be loaded.
    """

    name, pool_width, logit_width = "inception-tfhub", 2048, 1008

    def __init__(self) -> None:
        try:
            import tensorflow_hub

            self.module = tensorflow_hub.load(TFHUB_INCEPTION)
        except (ImportError, OSError, ValueError) as error:
            raise UserError(
                f"The TF-Hub module {TFHUB_INCEPTION} cannot be loaded ({error}). It needs an "
                "environment of its own, with Python 3.10 or 3.11 and requirements-tfgan.txt."
            ) from None

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import tensorflow as tf

        outputs = self.module((tf.cast(in_colour(images), tf.float32) - 127.5) / 127.5)
        pool, logits = outputs["pool_3"].numpy(), outputs["logits"].numpy()
        return pool.reshape(len(images), -1), logits.reshape(len(images), -1)
