"""Bytes become RGB images or a reason; masks come back from their PNG.

Run: pytest tests/test_codecs.py
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segpipe.data.codecs import decode_binary, decode_image, encode_mask
from segpipe.errors import RejectedImage

PIXELS = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_lossless_image_comes_back_pixel_by_pixel(kind, options):
    data = encoded(Image.fromarray(PIXELS), kind, **options)
    np.testing.assert_array_equal(decode_image(data), PIXELS)


def test_a_jpeg_comes_as_pillow_decodes_it():
    data = encoded(Image.fromarray(PIXELS), "JPEG")
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


def test_sixteen_bit_grey_keeps_its_range():
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    rgb = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert rgb[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_other_modes_come_as_rgb(mode):
    rgb = decode_image(encoded(Image.fromarray(PIXELS).convert(mode), "PNG"))
    assert rgb.shape == PIXELS.shape
    assert rgb.dtype == np.uint8


def test_cmyk_comes_as_rgb():
    rgb = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert rgb[4, 4, 0] > 200 > 60 > rgb[4, 4, 2]


def test_orientation_in_exif_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert decode_image(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)).shape == (31, 47, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just a text", "not an image"),
        (b"PK\x03\x04" + bytes(50), "not an image"),
        (encoded(Image.fromarray(PIXELS), "JPEG")[:400], "cannot be decoded"),
        (encoded(Image.fromarray(PIXELS), "PNG")[:900], "cannot be decoded"),
        (encoded(Image.fromarray(PIXELS), "TIFF")[:900], "cannot be decoded"),
    ],
)
def test_bytes_that_are_no_image_are_rejected_in_one_line(data, reason):
    with pytest.raises(RejectedImage, match=reason) as rejection:
        decode_image(data)
    assert "\n" not in str(rejection.value)


def test_a_header_of_900_megapixels_is_rejected_before_decoding():
    """The file has a header alone: decoding it would fail otherwise, and later."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(RejectedImage, match="900 megapixels"):
        decode_image(data)


def test_a_mask_comes_back_with_its_palette():
    mask = np.random.default_rng(1).integers(0, 3, (40, 33), np.uint8)
    picture = Image.open(io.BytesIO(encode_mask(mask)))
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), mask)
    assert picture.getpalette()[:9] == [0, 0, 0, 255, 255, 255, 128, 128, 128]
    np.testing.assert_array_equal(np.asarray(picture.convert("L")), np.array([0, 255, 128])[mask])


def test_a_drawing_with_palette_indices_0_and_1_is_read_by_its_colours():
    drawing = np.random.default_rng(2).random((9, 9)) > 0.5
    picture = Image.fromarray(drawing.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    np.testing.assert_array_equal(decode_binary(encoded(picture, "GIF")), drawing)
