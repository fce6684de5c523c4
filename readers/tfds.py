"""Data sets of tensorflow_datasets, prepared and read without TensorFlow."""

import contextlib
import io
import pathlib
import textwrap
import types
import urllib.parse
from collections.abc import Iterator
from unittest import mock

import ml_collections
import numpy as np
from PIL import Image

import domains
from readers import common
from readers.common import Source, block
from utils import UserError


def tfds(
    data: ml_collections.ConfigDict,
    split: str,
    *,
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    advice: str = "",
) -> Source:
    """The data set `name` of tensorflow_datasets, kept in ``root/tensorflow_datasets``.

    The error of a failed download ends with `advice`, by default to fetch the archives.
    """
    directory = pathlib.Path(data.root) / "tensorflow_datasets"
    origin = f"downloaded by tensorflow_datasets into {directory}"
    if any((directory / "downloads/manual").glob("*")):
        origin = f"made of {directory / 'downloads/manual'}, else {origin}"
    if is_prepared(directory, name):
        origin = f"read from {directory / name}"
    blocks = _tfds_blocks(directory, split, name, shape, classes, advice)
    return Source(shape, classes, blocks, [], origin=origin)


def is_prepared(directory: pathlib.Path, name: str) -> bool:
    """Whether `directory` has a set of this name; its files may still be damaged."""
    return any((directory / name).glob("**/dataset_info.json"))


def _tfds_blocks(directory, split, name, shape, classes, advice):
    import tensorflow_datasets

    builder_class = tensorflow_datasets.builder_cls(name)
    try:
        # The default format cannot be read without TensorFlow.
        builder = builder_class(data_dir=directory, file_format="array_record")
        with tensorflow_stand_in():
            builder.download_and_prepare()
        examples = builder.as_data_source(split)
        for start in range(0, len(examples), common.BLOCK):
            part = [examples[i] for i in range(start, min(start + common.BLOCK, len(examples)))]
            images = domains.channels_first(np.stack([example["image"] for example in part]))
            labels = np.array([example["label"] for example in part])
            yield block(f"tfds {name}", images, labels, shape, classes)
    except UserError:
        raise
    except Exception as error:  # tfds raises any error of its network, disk and parsers
        request = getattr(error, "request", None)  # that of a failed connection
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
        if request is not None:
            reason = f"no connection to {urllib.parse.urlsplit(request.url).hostname}"
        advice = advice or (
            f"Fetch {', '.join(builder_class.url_infos)} elsewhere and put it into "
            f"{directory / 'downloads' / 'manual'}, or copy {directory / name} from a machine "
            "where it is prepared."
        )
        if is_prepared(directory, name):
            advice += f" If {directory / name} is damaged, remove it."
        raise UserError(f"{name} could not be prepared ({reason}). {advice}") from error


@contextlib.contextmanager
def tensorflow_stand_in() -> Iterator[None]:
    """Within the context tfds prepares data sets without TensorFlow, installed or not.

    tfds 4.9 reads prepared sets without TensorFlow, but needs four of its functions to prepare one.
    This context provides them where tfds would import TensorFlow.
    """
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.utils import lazy_imports_utils

    stand_in = types.SimpleNamespace(
        compat=types.SimpleNamespace(as_text=str),
        executing_eagerly=lambda: True,
        image=types.SimpleNamespace(encode_png=_encode_png),
        io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)),
    )
    with (
        mock.patch.dict(vars(lazy_imports_utils.tensorflow), _module=stand_in),
        mock.patch.object(downloader, "MAX_RETRIES", 4),  # 10 would wait for over three minutes
    ):
        yield


def _encode_png(image):
    """``tf.image.encode_png`` of uint8 (H, W, 1 or 3): its bytes come from ``.numpy()``."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return types.SimpleNamespace(numpy=file.getvalue)
