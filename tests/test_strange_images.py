"""Images and folders from strangers: whatever lies there, it becomes images or gets a sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raw_data import random_images
from strangers import reads, spoiled

from readers import folder

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]


def encoded(name, array=None, **options):
    file = io.BytesIO()
    array = random_images(9, 12, 3) if array is None else array
    Image.fromarray(array).save(file, name, **options)
    return file.getvalue()


GOOD = {name: encoded(name) for name in FORMATS}
GOOD["JPEG in parts"] = encoded("JPEG", progressive=True)
GOOD["TIFF, deflated"] = encoded("TIFF", compression="tiff_deflate")


def png_chunk(name, content):
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(width, height, depth=8, colour=2, content=b"", before=()):
    """A PNG with any header, right checksums, and the compressed `content`."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def rows(width, height, channels):
    return bytes((width * channels + 1) * height)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("strangers") / "image"


def decode(path):
    return folder.decode_image(str(path), "RGB", (8, 8))[0]


def check_refused_or_image(path, content):
    path.write_bytes(content)
    image = reads(decode, path)
    if image is not None:
        assert (image.dtype, image.shape) == (np.uint8, (8, 8, 3))
    return image


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
@given(data=st.data())
def test_a_spoiled_image_is_refused_or_an_image(path, name, data):
    check_refused_or_image(path, data.draw(spoiled(GOOD[name])))


HOSTILE = {
    "terabytes": lambda: png(2**31 - 1, 2**31 - 1),
    "a large flat image": lambda: png(9000, 9000, content=rows(9000, 9000, 3)),
    "a long text": lambda: png(
        9, 9, content=rows(9, 9, 3), before=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))]
    ),
    "an EPS": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "an SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "16 bits": lambda: encoded("PNG", random_images(9, 9).astype(np.uint16) * 257),
    "empty": lambda: b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_image_gets_a_sentence(path, kind):
    assert check_refused_or_image(path, HOSTILE[kind]()) is None
