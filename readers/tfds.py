"""Data sets of tensorflow_datasets, prepared and read without TensorFlow."""

import contextlib
import io
import pathlib
import types
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
) -> Source:
    """A set that tensorflow_datasets knows as `name`, kept in ``root/tensorflow_datasets``."""
    directory = pathlib.Path(data.root) / "tensorflow_datasets"
    return Source(shape, classes, _tfds_blocks(directory, split, name, shape, classes), [])


def _tfds_blocks(directory, split, name, shape, classes):
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
        urls = ", ".join(builder_class.url_infos)
        reason = " ".join(str(error).split())
        raise UserError(
            f"tensorflow_datasets could not prepare {name} ({type(error).__name__}: {reason}). "
            f"Without a network, fetch {urls} elsewhere and put it into "
            f"{directory / 'downloads' / 'manual'}, or copy {directory / name} from a machine "
            f"where it is prepared. If {directory / name} is there but damaged, remove it."
        ) from error


@contextlib.contextmanager
def tensorflow_stand_in() -> Iterator[None]:
    """Let tfds prepare a data set without TensorFlow, whether or not that is installed.

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
