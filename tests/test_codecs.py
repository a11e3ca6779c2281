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


def test_a_gif_of_few_colours_comes_back_pixel_by_pixel():
    colours = np.random.default_rng(3).integers(0, 256, (200, 3), np.uint8)
    indices = np.random.default_rng(4).integers(0, 200, (31, 47), np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colours.tobytes())
    np.testing.assert_array_equal(decode_image(encoded(picture, "GIF")), colours[indices])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_range_in_every_format(kind):
    grey = np.linspace(0, 65535, 500).astype(np.uint16)[None]
    rgb = decode_image(encoded(Image.fromarray(grey), kind)).astype(int)
    assert (rgb[0, 0].tolist(), rgb[0, -1].tolist()) == ([0] * 3, [255] * 3)
    np.testing.assert_allclose(rgb, np.repeat(grey[..., None] / 257, 3, axis=2), atol=1)


def test_each_mode_keeps_its_colours():
    """Grey is repeated, alpha dropped, a palette looked up, one bit black and white."""
    grey, seen = PIXELS[..., 0], PIXELS[..., 1:2]
    bits = grey > 127
    modes = {
        "L": (Image.fromarray(grey), np.repeat(grey[..., None], 3, axis=2)),
        "LA": (Image.fromarray(PIXELS[..., :2], "LA"), np.repeat(grey[..., None], 3, axis=2)),
        "RGBA": (Image.fromarray(np.concatenate([PIXELS, seen], axis=2), "RGBA"), PIXELS),
        "1": (Image.fromarray(bits), np.repeat(bits[..., None] * np.uint8(255), 3, axis=2)),
    }
    for mode, (picture, wanted) in modes.items():
        assert picture.mode == mode
        np.testing.assert_array_equal(decode_image(encoded(picture, "PNG")), wanted, err_msg=mode)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_stay_where_they_are_stored_whatever_exif_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), "PNG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
    np.testing.assert_array_equal(decode_image(data), PIXELS)


def image_or_reason(data: bytes) -> np.ndarray | str:
    try:
        return decode_image(data)
    except RejectedImage as rejection:
        return str(rejection)


@pytest.mark.filterwarnings("ignore")  # as in a run, where Pillow's warnings stop nothing
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF"])
def test_a_file_cut_off_anywhere_is_rejected_or_whole(kind):
    """Nothing but a rejection comes out, and never an image with a part made up."""
    data = encoded(Image.fromarray(PIXELS), kind)
    whole, reasons = decode_image(data), []
    for length in range(0, len(data), max(1, len(data) // 60)):
        found = image_or_reason(data[:length])
        if isinstance(found, str):
            reasons.append(found)
        else:
            np.testing.assert_array_equal(found, whole)
    assert len(reasons) > 40
    assert not any("\n" in reason for reason in reasons)


def test_the_limit_of_megapixels_holds_from_the_first_pixel_above_it():
    data = encoded(Image.new("RGB", (1000, 500)), "PNG")
    assert decode_image(data, max_megapixels=0.5).shape == (500, 1000, 3)
    with pytest.raises(RejectedImage, match=r"--max-megapixels 0\.4"):
        decode_image(data, max_megapixels=0.4)
