"""JPEG 2000, AVIF, HEIC and JPEG XL keep the limits of older formats, and name their extra.

Run: pytest tests/test_newer_formats.py
"""

import io
import re
import struct
import sys

import imagecodecs
import numpy as np
import pytest
from files import encoded, heic, smooth
from PIL import Image
from test_codecs import reason, smooth_colours, turned_exif

from segpipe.data import pictures
from segpipe.data.codecs import EXTENSIONS, decode_image, decode_photograph
from segpipe.errors import Fault, RejectedImage


def test_a_jpeg_2000_larger_than_its_box_says_is_rejected_before_decoding(monkeypatch):
    """The box says 48 px, its codestream 30000."""

    def decode(*_: object) -> None:
        raise RejectedImage(Fault.INTERNAL_ERROR, "decoded")

    monkeypatch.setattr(pictures, "_pixels", decode)
    assert reason(encoded(smooth_colours(), "JPEG2000")) == "decoded"
    data = bytearray(encoded(smooth_colours(), "JPEG2000"))
    struct.pack_into(">II", data, data.index(b"\xff\x51") + 6, 30000, 30000)
    assert reason(bytes(data)) == "cannot be decoded: cut off or damaged JPEG2000"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_the_others(orientation):
    """By its own boxes, which Pillow's encoder makes of EXIF; with a little loss."""
    data = encoded(smooth_colours(), "AVIF", quality=100, exif=turned_exif(orientation))
    found = decode_photograph(data)
    np.testing.assert_allclose(found.image.astype(int), smooth(), atol=8)
    assert found.orientation == orientation


@pytest.mark.parametrize(
    ("module", "data", "sentence"),
    [
        ("pi_heif", heic(), "HEIF needs the extra segpipe[heic]"),
        ("imagecodecs", b"\xff\x0a", "JPEG XL needs the extra segpipe[jxl]"),
    ],
)
def test_without_its_extra_a_format_is_named_with_it(module, data, sentence, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "segpipe.data.jxl", raising=False)
    with pytest.raises(RejectedImage) as rejection:
        decode_photograph(data)
    assert (str(rejection.value), rejection.value.fault) == (sentence, Fault.MISSING_EXTRA)


def test_a_heic_is_read_as_it_was_encoded():
    found = decode_photograph(heic())
    np.testing.assert_allclose(found.image.astype(int), smooth(), atol=6)
    assert (found.orientation, found.note) == (1, "")


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("shape", [(31, 47), (48, 64), (256, 256), (240, 320), (20, 3000)])
def test_a_jpeg_xl_of_any_size_comes_back_pixel_by_pixel(shape, container):
    """Its header has several ways to write a size, all of which are read before it is decoded."""
    values = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    options = {"lossless": True, "usecontainer": container, "effort": 1}
    for picture in (values, values[..., 0], np.concatenate([values, values[..., :1]], axis=2)):
        data = imagecodecs.jpegxl_encode(picture, **options)
        wanted = picture[..., :3] if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        np.testing.assert_array_equal(decode_image(data), wanted)
        width_limit = shape[0] * shape[1] / 1e6
        assert reason(data, width_limit * 0.99).startswith("more megapixels")


@pytest.mark.parametrize("brand", [b"avif", b"mif1", b"heic", b"msf1"])
def test_a_format_of_boxes_is_known_by_its_brands(brand):
    """The major one may be of the container alone."""
    avif, heif = bytearray(encoded(smooth_colours(), "AVIF")), bytearray(heic())
    for data, own in ((avif, b"avif"), (heif, b"heic")):
        data[8:12] = brand if brand in (b"mif1", b"msf1") else own
        assert decode_photograph(bytes(data)).size == (48, 64)


def test_the_suffix_of_every_format_that_is_read_is_taken_for_a_photograph():
    assert {".jp2", ".j2k", ".avif", ".heic", ".heif", ".jxl", ".jpg", ".dcm"} <= EXTENSIONS


def test_a_jpeg_2000_that_ends_between_two_tiles_is_damaged():
    """OpenJPEG gives black for those that are not there, without a word."""
    data = encoded(smooth_colours(), "JPEG2000", no_jp2=True, tile_size=(16, 16))
    tiles = [found.start() for found in re.finditer(b"\xff\x90\0\x0a", data)]
    assert len(tiles) == 12
    num_silent = 0
    for length in (place + more for place in tiles for more in range(-2, 16)):
        try:
            Image.open(io.BytesIO(data[:length])).load()
            num_silent += 1
        except OSError:
            pass
        assert reason(data[:length]) == "cannot be decoded: cut off or damaged JPEG2000"
    assert num_silent > 0  # or this test is worth nothing
