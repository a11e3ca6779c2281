"""Bytes become photographs or a reason; masks come back from their PNG.

Run: pytest tests/test_codecs.py
"""

import io
import re
import struct
import tracemalloc
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
from files import chunk, encoded, heic, png16, smooth, tiff
from PIL import Image, ImageOps, PngImagePlugin

from segpipe import kernels
from segpipe.data.codecs import (
    decode_image,
    decode_photograph,
    encode_grey,
    encode_kinds,
    encode_mask,
)
from segpipe.data.drawings import read_drawing
from segpipe.data.photograph import Photograph
from segpipe.data.tiff import MAX_PAGES
from segpipe.errors import RejectedImage

PIXELS = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (31, 47, 3), np.uint16)
UPPER = (DEEP >> 8).astype(np.uint8)  # of 16 bits the upper 8
GREY = np.repeat(PIXELS[..., :1], 3, axis=2)


def smooth_colours(height: int = 48, width: int = 64) -> Image.Image:
    return Image.fromarray(smooth(height, width))


def turned_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def reason(data: bytes, max_megapixels: float = 200.0) -> str:
    """Why these bytes are rejected."""
    with pytest.raises(RejectedImage) as rejection:
        decode_photograph(data, max_megapixels)
    assert str(rejection.value).isprintable()
    return str(rejection.value)


# ---- read right


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("BMP", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_lossless_image_comes_back_pixel_by_pixel(kind, options):
    found = decode_photograph(encoded(PIXELS, kind, **options))
    np.testing.assert_array_equal(found.image, PIXELS)
    assert (found.image.dtype, found.orientation, found.note) == (np.uint8, 1, "")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_comes_as_opencv_decodes_it(options):
    data = encoded(smooth_colours(), "JPEG", quality=90, **options)
    wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(decode_image(data).astype(int), wanted, atol=2)


@pytest.mark.parametrize(
    ("enough", "reduction"),
    [(1e9, 1), (202, 1), (201, 2), (101, 2), (100.5, 4), (60, 4), (50.25, 8), (1, 8)],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_comes_reduced_while_its_shorter_side_keeps_enough(enough, reduction, mode):
    """Each pixel is about the mean of those it stands for; the last ones of what is left."""
    picture = smooth_colours().resize((643, 402)).convert(mode)
    data = encoded(picture, "JPEG", quality=95, exif=turned_exif(6))
    found, whole = decode_photograph(data, 200, enough), decode_photograph(data)
    assert (found.reduction, found.size) == (reduction, (402, 643))
    assert (whole.reduction, whole.size) == (1, (402, 643))
    assert found.image.shape == (-(-402 // reduction), -(-643 // reduction), 3)
    assert (found.orientation, found.note) == (6, "")
    means = np.asarray(whole.picture.reduce(reduction)).astype(int)
    np.testing.assert_allclose(found.image, means, atol=6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_other_formats_come_whole(kind):
    found = decode_photograph(encoded(PIXELS, kind), 200, 1)
    np.testing.assert_array_equal(found.image, PIXELS)
    assert (found.reduction, found.size) == (1, PIXELS.shape[:2])


def test_a_reduced_jpeg_is_rejected_as_a_whole_one():
    """The limit counts the file's pixels; and what is cut off is seen at any size."""
    data = encoded(smooth_colours(402, 643), "JPEG")
    with pytest.raises(RejectedImage, match="more megapixels"):
        decode_photograph(data, 0.25, 1)
    for length in (len(data) * 9 // 10, len(data) - 2):
        with pytest.raises(RejectedImage, match="cut off or damaged JPEG"):
            decode_photograph(data[:length], 200, 1)


def test_an_image_alone_is_that_of_the_photograph():
    data = encoded(PIXELS, "PNG")
    np.testing.assert_array_equal(decode_image(data), decode_photograph(data).image)


def test_the_content_decides_and_no_name_is_asked():
    """Of the same pixels, each format is told by its bytes alone."""
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        np.testing.assert_array_equal(decode_image(encoded(PIXELS, kind)), PIXELS, err_msg=kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_sixteen_bits_of_grey_the_upper_eight_count(kind):
    data = encoded(DEEP[..., 0], kind)
    np.testing.assert_array_equal(decode_image(data), np.repeat(UPPER[..., :1], 3, axis=2))


@pytest.mark.parametrize("extension", [".png", ".tiff", ".ppm"])
def test_of_sixteen_bits_of_colour_the_upper_eight_count(extension):
    data = cv2.imencode(extension, DEEP[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), UPPER)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("values", [PIXELS, DEEP], ids=["8 bits", "16 bits"])
def test_a_tiff_is_read_however_it_is_laid_out(values, planes, compression, tile, byteorder):
    stored = values if planes == "contig" else np.moveaxis(values, 2, 0)
    data = tiff(
        np.ascontiguousarray(stored),
        "rgb",
        planarconfig=planes,
        compression=compression,
        tile=tile,
        byteorder=byteorder,
    )
    np.testing.assert_array_equal(decode_image(data), PIXELS if values is PIXELS else UPPER)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "f4"])
def test_grey_of_any_depth_and_byte_order_keeps_its_range(dtype, byteorder, compression):
    """0 to 32767, as floats and 32 bit integers have no range of their own."""
    values = (DEEP[..., 0] >> 1).astype(dtype)
    image = decode_image(tiff(values, byteorder=byteorder, compression=compression)).astype(int)
    np.testing.assert_allclose(image, np.repeat(values[..., None] / 257, 3, axis=2), atol=1)


def test_a_bigtiff_is_read():
    np.testing.assert_array_equal(decode_image(tiff(PIXELS, "rgb", bigtiff=True)), PIXELS)


@pytest.mark.parametrize(
    ("dtype", "highest", "scale"),
    [
        ("f4", 1.0, 255),
        ("f4", 255, 1),
        ("f4", 65535, 1 / 257),
        ("i4", 255, 1),
        ("i4", 60000, 1 / 257),
    ],
)
def test_numbers_without_a_range_are_scaled_by_the_largest_of_them(dtype, highest, scale):
    values = (np.linspace(0, highest, 20 * 30).reshape(20, 30)).astype(dtype)
    wanted = np.repeat(np.rint(values[..., None] * float(scale)), 3, axis=2)
    np.testing.assert_allclose(decode_image(tiff(values)).astype(int), wanted, atol=1)


def test_integers_of_0_and_1_are_taken_as_they_are():
    values = np.eye(20, dtype=np.int32)
    assert decode_image(tiff(values)).max() == 1


@pytest.mark.parametrize("values", [PIXELS[..., 0], DEEP[..., 0], DEEP[..., 0].astype("f4")])
def test_white_is_zero_where_a_tiff_says_so(values):
    light, dark = (decode_image(tiff(values, p)).astype(int) for p in ("minisblack", "miniswhite"))
    np.testing.assert_array_equal(light + dark, 255)


def test_twelve_packed_bits_keep_their_range():
    """Two samples in three bytes, as tifffile packs them for nobody: here by hand."""
    values = np.random.default_rng(2).integers(0, 4096, (20, 32))
    even, odd = values[:, ::2], values[:, 1::2]
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], axis=2).astype(np.uint8)
    entries = [(256, 32), (257, 20), (258, 12), (259, 1), (262, 1), (273, 134), (277, 1)]
    entries += [(278, 20), (279, packed.size), (339, 1)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    data = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4)
    assert len(data) == 134
    wanted = np.repeat((values >> 4)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(data + packed.tobytes()), wanted)


def test_each_mode_keeps_its_colours():
    """Grey is repeated, alpha dropped, one bit is black and white."""
    grey, seen = PIXELS[..., 0], PIXELS[..., 1:2]
    bits = grey > 127
    modes = {
        "L": (Image.fromarray(grey), GREY),
        "LA": (Image.fromarray(np.ascontiguousarray(PIXELS[..., :2]), "LA"), GREY),
        "RGBA": (Image.fromarray(np.concatenate([PIXELS, seen], axis=2), "RGBA"), PIXELS),
        "1": (Image.fromarray(bits), np.repeat(bits[..., None] * np.uint8(255), 3, axis=2)),
    }
    for mode, (picture, wanted) in modes.items():
        assert picture.mode == mode
        for kind in ("PNG", "TIFF"):
            image = decode_image(encoded(picture, kind))
            np.testing.assert_array_equal(image, wanted, err_msg=f"{mode} {kind}")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_a_palette_is_looked_up(kind):
    colours = np.random.default_rng(3).integers(0, 256, (200, 3), np.uint8)
    indices = np.random.default_rng(4).integers(0, 200, (31, 47), np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colours.tobytes())
    np.testing.assert_array_equal(decode_image(encoded(picture, kind)), colours[indices])


@pytest.mark.parametrize("transparency", [7, bytes(range(200))], ids=["one", "each"])
def test_a_palette_keeps_its_colours_where_it_is_transparent(transparency):
    colours = np.random.default_rng(3).integers(0, 256, (200, 3), np.uint8)
    indices = np.random.default_rng(4).integers(0, 200, (31, 47), np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colours.tobytes())
    data = encoded(picture, "PNG", transparency=transparency)
    assert b"tRNS" in data
    np.testing.assert_array_equal(decode_image(data), colours[indices])


def test_cmyk_of_a_jpeg_comes_as_opencv_reads_it():
    """Adobe's inverted inks, with its marker and without."""
    data = encoded(smooth_colours().convert("CMYK"), "JPEG", quality=95)
    marker = data.index(b"\xff\xee")
    bare = data[:marker] + data[marker + 16 :]
    assert b"Adobe" in data
    assert b"Adobe" not in bare
    for version in (data, bare):
        wanted = cv2.imdecode(np.frombuffer(version, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_allclose(decode_image(version).astype(int), wanted, atol=2)
        np.testing.assert_allclose(wanted.astype(int), smooth(), atol=12)


def test_cmyk_of_a_tiff_is_not_inverted():
    inks = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    assert decode_image(encoded(inks, "TIFF"))[9, 9].tolist() == [255, 0, 0]


def test_an_interlaced_png_is_read():
    """Seven passes (Adam7), written by hand, as Pillow writes none."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
    passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in PIXELS[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", 47, 31, 8, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_image(data), PIXELS)


@pytest.mark.parametrize("maximum", [1, 100, 255, 1000, 65535])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_a_netpbm_file_is_scaled_by_its_own_maximum(maximum, channels, plain):
    values = np.random.default_rng(5).integers(0, maximum + 1, (20, 30, channels))
    magic = {(1, False): b"P5", (3, False): b"P6", (1, True): b"P2", (3, True): b"P3"}
    header = magic[channels, plain] + b"\n# a comment\n30 20\n%d\n" % maximum
    binary = values.astype(">u2" if maximum > 255 else "u1").tobytes()
    text = "\n".join(str(value) for value in values.ravel()).encode()
    image = decode_image(header + (text if plain else binary)).astype(int)
    np.testing.assert_allclose(image, np.broadcast_to(values * 255 / maximum, image.shape), atol=1)


def test_an_embedded_colour_profile_is_ignored():
    """Another picture of the same values comes the same, whatever light a profile claims."""
    profile = b"no real profile: it is not even looked at"
    for kind in ("PNG", "TIFF"):
        data = encoded(PIXELS, kind, icc_profile=profile)
        assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
        np.testing.assert_array_equal(decode_image(data), PIXELS)


# ---- of several pictures the first


def several(kind: str, num: int = 3) -> bytes:
    first, *others = [Image.fromarray(np.roll(smooth(), n, axis=2)) for n in range(num)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(first, kind, save_all=True, append_images=others, **options)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("TIFF", "first of 3 pages"),
        ("GIF", "first of 3 frames"),
        ("WEBP", "first of 3 frames"),
        ("PNG", "first of 3 frames"),
        ("MPO", "first of 3 pictures"),
    ],
)
def test_of_several_pictures_the_first_counts_and_the_note_says_so(kind, note):
    found = decode_photograph(several(kind))
    assert found.note == note
    lossy = {"GIF": 40, "MPO": 8}.get(kind, 0)  # 256 colours; JPEG's loss
    np.testing.assert_allclose(found.image.astype(int), smooth(), atol=lossy)


def test_a_chain_of_pages_that_is_a_loop_ends():
    data = bytearray(several("TIFF", 2))
    (first,) = struct.unpack_from("<I", data, 4)
    (num_entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * num_entries, first)
    found = decode_photograph(bytes(data))
    np.testing.assert_array_equal(found.image, smooth())
    assert found.note == f"first of {MAX_PAGES} or more pages"


def test_a_fault_behind_the_first_page_is_no_fault_of_the_first():
    whole = several("TIFF", 2)
    (first,) = struct.unpack_from("<I", whole, 4)
    (num_entries,) = struct.unpack_from("<H", whole, first)
    data = bytearray(whole)
    struct.pack_into("<I", data, first + 2 + 12 * num_entries, 2**31)
    np.testing.assert_array_equal(decode_image(bytes(data)), smooth())


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_pixels_stay_where_they_are_stored_and_the_turn_is_reported(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(PIXELS, kind, exif=turned_exif(orientation), **options)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
    found = decode_photograph(data)
    np.testing.assert_array_equal(found.image, PIXELS)
    assert found.orientation == orientation


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_counts_as_1(orientation):
    data = encoded(smooth_colours(), "JPEG", exif=turned_exif(orientation))
    assert decode_photograph(data).orientation == 1


def test_broken_exif_is_no_fault_of_the_picture():
    data = encoded(smooth_colours(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fnothing")
    found = decode_photograph(data)
    assert (found.image.shape, found.orientation) == ((48, 64, 3), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_displayed_as_its_photograph_is(orientation):
    """By Pillow and by OpenCV: the mask is the photograph's bright half, turned or not."""
    stored = smooth(32, 48)
    stored[:, :, :] = np.where(np.add(*np.mgrid[:32, :48]) < 30, 255, 0)[..., None]
    photo = encoded(stored, "JPEG", exif=turned_exif(orientation), quality=95)
    found = decode_photograph(photo)
    bright = found.image[..., 0] > 127
    mask = encode_mask(bright.astype(np.uint8), found.orientation)
    seen = [np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(d)))) for d in (photo, mask)]
    np.testing.assert_array_equal(seen[0][..., 0] > 127, seen[1] == 1)
    by_opencv = [
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) for data in (photo, mask)
    ]
    np.testing.assert_array_equal(by_opencv[0] > 127, by_opencv[1] == 255)
    np.testing.assert_array_equal(by_opencv[1] == 255, seen[1] == 1)


@pytest.mark.parametrize("orientation", [1, 6])
def test_opencv_reads_the_classes_of_a_mask(orientation):
    """As their greys where it turns the mask, as their colours where it takes what is stored."""
    mask = np.random.default_rng(1).integers(0, 3, (40, 33), np.uint8)
    data = np.frombuffer(encode_mask(mask, orientation), np.uint8)
    greys = np.array([0, 255, 128], np.uint8)[mask]
    turned = greys if orientation == 1 else np.rot90(greys, -1)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), turned)
    stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, np.repeat(greys[..., None], 3, axis=2))


# ---- masks and drawings


@pytest.mark.parametrize("orientation", [1, 8])
def test_a_mask_comes_back_with_its_palette(orientation):
    mask = np.random.default_rng(1).integers(0, 3, (40, 33), np.uint8)
    data = encode_mask(mask, orientation)
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == "P"
    assert (b"eXIf" in data) == (orientation != 1)
    np.testing.assert_array_equal(np.asarray(picture), mask)
    assert picture.getpalette()[:9] == [0, 0, 0, 255, 255, 255, 128, 128, 128]
    np.testing.assert_array_equal(np.asarray(picture.convert("L")), np.array([0, 255, 128])[mask])


@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize("missing", ["", "no C++ compiler"])
def test_a_mask_of_any_width_is_whole_for_pillow_and_opencv(
    width, orientation, missing, monkeypatch
):
    """Four pixels share a byte: every rest of a row, also of one that is cut out of a larger.

    Packed by the kernels and without them.
    """
    if not missing and (problem := kernels.missing()):
        pytest.skip(problem)
    monkeypatch.setattr(kernels, "missing", lambda: missing)
    wider = np.random.default_rng(width).integers(0, 3, (7, 20), np.uint8)
    for mask in (wider[:, :width], np.asfortranarray(wider[:, :width]), wider[::2, 20 - width :]):
        data = encode_mask(mask, orientation)
        picture = Image.open(io.BytesIO(data))
        picture.verify()  # the check sums
        picture = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(np.asarray(picture), mask)
        assert picture.getexif().get(0x0112, 1) == orientation
        colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(colours[..., 0], np.array([0, 255, 128])[mask])


def test_a_mask_has_the_header_and_palette_that_pillow_writes():
    mask = np.random.default_rng(1).integers(0, 3, (40, 33), np.uint8)
    picture = Image.fromarray(mask, "P")
    picture.putpalette([0, 0, 0, 255, 255, 255, 128, 128, 128])
    by_pillow, data = encoded(picture, "PNG"), encode_mask(mask)
    assert data[:33] == by_pillow[:33]  # signature and IHDR: two bits a pixel
    for png in (data, by_pillow):
        palette = png.index(b"PLTE") + 4
        assert png[palette : palette + 9] == bytes([0, 0, 0, 255, 255, 255, 128, 128, 128])
    assert data == encode_mask(mask.copy())


@pytest.mark.parametrize("encode", [encode_mask, encode_kinds])
@pytest.mark.parametrize("size", [300, 2000])
def test_files_of_the_kernels_are_hardly_larger_than_zlibs(encode, size, monkeypatch):
    """Of lines within a field; in small files the blocks' codes weigh more."""
    if problem := kernels.missing():
        pytest.skip(problem)
    mask = np.zeros((size, size), np.uint8)
    cv2.circle(mask, (size // 2, size // 2), size * 2 // 5, 2, -1)
    for end in np.random.default_rng(0).integers(size // 4, size * 3 // 4, (30, 2)):
        cv2.line(mask, (size // 2, size // 2), end.tolist(), 1, size // 200)
    packed = encode(mask)
    monkeypatch.setattr(kernels, "missing", lambda: "no C++ compiler")
    assert len(packed) < len(encode(mask)) + 300


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (70, 1), (200, 333)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("missing", ["", "no C++ compiler"])
def test_a_grey_picture_is_whole_for_pillow_and_opencv(shape, orientation, missing, monkeypatch):
    """Noise within a frame of zeros, packed by the kernels and without them."""
    if not missing and (problem := kernels.missing()):
        pytest.skip(problem)
    monkeypatch.setattr(kernels, "missing", lambda: missing)
    wider = np.random.default_rng(0).integers(0, 256, (2 * shape[0], shape[1] + 9), np.uint8)
    wider[shape[0] : shape[0] + 50, : shape[1] // 2] = 0
    for grey in (wider[: shape[0], 3:-6], wider[::2, :-9], np.asfortranarray(wider[::2, 9:])):
        data = encode_grey(grey, orientation)
        Image.open(io.BytesIO(data)).verify()  # the check sums
        picture = Image.open(io.BytesIO(data))
        assert picture.mode == "L"
        assert picture.getexif().get(0x0112, 1) == orientation
        np.testing.assert_array_equal(np.asarray(picture), grey)
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, grey)


# ---- rejected


@pytest.mark.parametrize(
    "data",
    [
        b"just a text",
        b"GIF, PNG and BMP are formats",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"PK\x03\x04" + bytes(50),
        b"%PDF-1.7",
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
        b"\x89PNF\r\n\x1a\n" + encoded(PIXELS, "PNG")[8:],
        bytes(1000),
    ],
)
def test_bytes_that_are_no_image_are_named_so(data):
    assert reason(data) == "not an image in a known format"


def test_an_empty_file_is_named_so():
    assert reason(b"") == "empty file"


CUT = {
    "JPEG": encoded(smooth_colours(), "JPEG"),
    "progressive JPEG": encoded(smooth_colours(), "JPEG", progressive=True),
    "PNG": encoded(PIXELS, "PNG"),
    "TIFF": encoded(PIXELS, "TIFF"),
    "LZW TIFF": encoded(PIXELS, "TIFF", compression="tiff_lzw"),
    "deflate TIFF": encoded(PIXELS, "TIFF", compression="tiff_adobe_deflate"),
    "tiled TIFF": tiff(PIXELS, "rgb", tile=(16, 16)),
    "tiled deflate TIFF": tiff(PIXELS, "rgb", tile=(16, 16), compression="deflate"),
    "BMP": encoded(PIXELS, "BMP"),
    "PPM": encoded(PIXELS, "PPM"),
    "deep PPM": cv2.imencode(".ppm", DEEP)[1].tobytes(),
    "WEBP": encoded(PIXELS, "WEBP"),
    "GIF": encoded(PIXELS, "GIF"),
    "JPEG2000": encoded(PIXELS, "JPEG2000"),
    "lossy JPEG2000": encoded(smooth_colours(), "JPEG2000", irreversible=True),
    "tiled JPEG2000": encoded(PIXELS, "JPEG2000", no_jp2=True, tile_size=(16, 16)),
    "deep JPEG2000": imagecodecs.jpeg2k_encode(DEEP, level=0, reversible=True),
    "AVIF": encoded(PIXELS, "AVIF"),
    "HEIF": heic(),
    "JXL": imagecodecs.jpegxl_encode(PIXELS, lossless=True),
    "boxed JXL": imagecodecs.jpegxl_encode(PIXELS, lossless=True, usecontainer=True),
    "float TIFF": tiff(PIXELS.astype("f4"), "rgb"),
    "deflate float TIFF": tiff(PIXELS.astype("f4"), "rgb", compression="deflate"),
    "tiled float TIFF": tiff(PIXELS.astype("f4"), "rgb", tile=(16, 16)),
    "few-bit PNG": png16(PIXELS.astype(np.uint16) << 4),
    "few-bit TIFF": tiff(PIXELS.astype(np.uint16) << 4, "rgb"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_off_at_any_tenth_is_named_so(name):
    kind = name.split()[-1]
    for tenth in range(1, 10):
        data = CUT[name][: len(CUT[name]) * tenth // 10]
        assert re.fullmatch(
            f"cannot be decoded: (cut off or damaged|damaged or unsupported) {kind}", reason(data)
        )


def photograph_or_reason(data: bytes) -> Photograph | str:
    try:
        return decode_photograph(data)
    except RejectedImage as rejection:
        return str(rejection)


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_off_anywhere_is_rejected_or_whole(name):
    """Nothing but a rejection comes out, and never an image with a part made up."""
    data, reasons = CUT[name], []
    whole = decode_image(data)
    for length in [
        *range(0, len(data), max(1, len(data) // 60)),
        *range(len(data) - 20, len(data)),
    ]:
        found = photograph_or_reason(data[:length])
        if isinstance(found, str):
            reasons.append(found)
        else:
            np.testing.assert_array_equal(found.image, whole)
    assert len(reasons) > 40
    assert len(set(reasons)) <= 4  # a few reasons, whatever the lengths


def bombs() -> dict[str, bytes]:
    """Headers of 30000 x 30000 px and nothing behind them that could be decoded."""
    side = 30000
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    entries = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 9)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    jpeg = encoded(smooth_colours(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    jp2 = bytearray(encoded(PIXELS, "JPEG2000"))
    for place in (jp2.index(b"ihdr") + 4, jp2.index(b"\xff\x51") + 6):
        struct.pack_into(">II", jp2, place, side, side)
    j2k = bytearray(encoded(PIXELS, "JPEG2000", no_jp2=True))
    struct.pack_into(">II", j2k, 8, side, side)
    heif, avif = bytearray(heic()), bytearray(encoded(PIXELS, "AVIF"))
    for data in (heif, avif):
        struct.pack_into(">II", data, data.index(b"ispe") + 8, side, side)
    floats = bytearray(tiff(PIXELS.astype("f4"), "rgb"))
    for tag in (256, 257):
        place = floats.index(struct.pack("<HHI", tag, 4, 1))
        struct.pack_into("<HHII", floats, place, tag, 4, 1, side)
    webp = b"VP8X" + struct.pack("<IIIH", 10, 0, 0, 0)[:8]
    webp += (side - 1).to_bytes(3, "little") * 2
    return {
        "PNG": png + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "TIFF": struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4),
        "JPEG": jpeg[:frame] + struct.pack(">HH", side, side) + jpeg[frame + 4 :],
        "GIF": b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, side, side, 0)
        + b"\x08\0;",
        "BMP": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, side, side, 1, 24, *[0] * 6),
        "PPM": b"P6\n%d %d\n255\n" % (side, side),
        "WEBP": b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        "JPEG2000": bytes(jp2),
        "JPEG2000 codestream": bytes(j2k),
        "HEIF": bytes(heif),
        "AVIF": bytes(avif),
        "JXL": b"\xff\x0a" + (side - 1 << 3 | 2 << 1 | 1 << 21 + 2).to_bytes(12, "little"),
        "float TIFF": bytes(floats),
        "lossless WEBP": b"RIFF\x1a\0\0\0WEBPVP8L" + struct.pack("<IBI", 5, 0x2F, 2**28 - 1),
        "lossy WEBP": b"RIFF\x1a\0\0\0WEBPVP8 "
        + struct.pack("<I3s3sHH", 10, b"\x10\0\0", b"\x9d\x01\x2a", 0x3FFF, 0x3FFF),
    }


@pytest.mark.parametrize(("name", "data"), bombs().items())
def test_a_header_of_900_megapixels_is_rejected_before_decoding(name, data):
    """The file has a header alone: decoding it would fail otherwise, and later."""
    tracemalloc.start()
    assert reason(data) == "more megapixels than --max-megapixels 200"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_tile_larger_than_the_limit_is_rejected_before_it_takes_memory():
    data = bytearray(tiff(PIXELS, "rgb", tile=(16, 16)))
    for tag in (322, 323):
        place = data.index(struct.pack("<HHI", tag, 4, 1))
        struct.pack_into("<HHII", data, place, tag, 4, 1, 2**15)
    assert reason(bytes(data)) == "more megapixels than --max-megapixels 200"


def test_the_limit_of_megapixels_holds_from_the_first_pixel_above_it():
    data = encoded(Image.new("RGB", (1000, 500)), "PNG")
    assert decode_image(data, max_megapixels=0.5).shape == (500, 1000, 3)
    assert reason(data, 0.499) == "more megapixels than --max-megapixels 0.499"


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15), (100_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_a_frame_too_small_for_a_field_of_view_is_named_so(size, kind):
    assert reason(encoded(Image.new("RGB", size), kind)) == "too small: a side of less than 16 px"
    assert decode_image(encoded(Image.new("RGB", (16, 16)), kind)).shape == (16, 16, 3)


@pytest.mark.parametrize("side", [0, 2**31 - 1, 2**31, 2**32 - 1])
def test_absurd_sides_are_rejected(side):
    for size in ((side, 20), (20, side)):
        header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
        png = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", b"")
            + chunk(b"IEND", b"")
        )
        bmp = bytearray(encoded(PIXELS, "BMP"))
        struct.pack_into("<II", bmp, 18, *size)
        ppm = b"P6\n%d %d\n255\n" % size
        for data in (png, bytes(bmp), ppm):
            wanted = "more megapixels|too small|cannot be decoded: "
            assert re.match(wanted, reason(data))


def test_a_text_that_unpacks_to_gigabytes_is_rejected():
    """64 MiB of zeros in 64 KB: before the pixels, behind them, and as a colour profile."""
    zeros = zlib.compress(bytes(2**26), 9)
    png = encoded(PIXELS, "PNG")
    header, rest, end = png[:33], png[33:-12], png[-12:]
    text, profile = chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"iCCP", b"a\0\0" + zeros)
    for data in (
        header + text + rest + end,
        header + rest + text + end,
        header + profile + rest + end,
    ):
        wanted = "cannot be decoded: PNG with an oversized text or colour profile"
        assert reason(data) == wanted


def test_texts_of_the_usual_size_do_no_harm():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("camera", "a" * 10_000, zip=True)
    np.testing.assert_array_equal(decode_image(encoded(PIXELS, "PNG", pnginfo=texts)), PIXELS)


def test_a_jpeg_whose_rest_was_never_written_is_rejected():
    """A download into a file of full size, cut off: Pillow makes the rest up without a word."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    whole = encoded(noise, "JPEG", quality=95)
    data = whole[: len(whole) // 2] + bytes(len(whole) // 2)
    assert np.asarray(Image.open(io.BytesIO(data))).shape == noise.shape
    assert reason(data) == "cannot be decoded: cut off or damaged JPEG"


def test_a_jpeg_is_whole_with_other_data_behind_its_end():
    data = encoded(smooth_colours(), "JPEG")
    trailing = decode_image(data + b"\xff\xda\xff trailer" * 200)
    np.testing.assert_array_equal(trailing, decode_image(data))


def test_a_jpeg_of_endless_scans_is_rejected():
    """Each is 8 bytes and would visit every pixel."""
    data = encoded(smooth_colours(), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    empty = b"\xff\xda\0\x08\x01\x01\x00\x00\x00\x10"
    assert reason(data[:scan] + empty * 200 + data[scan:]) == "JPEG of more than 100 scans"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_named_so(bad):
    values = np.ones((20, 20), np.float32)
    values[3, 4] = bad
    assert reason(tiff(values)) == "pixel values that are not numbers"


@pytest.mark.parametrize("bad", [-1, 65536, 2**31 - 1])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_of_no_known_range_are_named_so(bad, dtype):
    values = np.ones((20, 20), dtype)
    values[3, 4] = bad
    assert reason(tiff(values)) == "pixel values outside 0 to 65535"


def test_a_complex_tiff_is_named_so():
    values = np.ones((20, 20), np.complex64)
    assert reason(tiff(values)) == "cannot be decoded: TIFF of complex numbers"


@pytest.mark.parametrize(
    ("values", "photometric"),
    [(np.ones((20, 20)), "minisblack"), (np.ones((20, 20, 3), "f8"), "rgb"), (PIXELS, "cielab")],
)
def test_a_tiff_of_rare_pixels_is_named_so(values, photometric):
    wanted = "cannot be decoded: TIFF with pixels of a kind that is not read"
    assert reason(tiff(values, photometric)) == wanted


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_mask_is_known_by_its_palette_and_is_no_photograph(orientation):
    """Whoever copied it whereto; as a label, and for the report, it is read as before."""
    mask = np.repeat(np.arange(60, dtype=np.uint8)[:, None] % 3, 80, axis=1)
    data = encode_mask(mask, orientation)
    assert reason(data) == "is a mask as segpipe writes them, not a photograph"
    assert reason(data[: data.index(b"IDAT")]) == reason(data)  # no pixel is looked at
    grey = np.array([0, 255, 128], np.uint8)[mask]
    np.testing.assert_array_equal(decode_image(data), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_drawing(data).foreground, mask != 0)
    for like in (Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        np.testing.assert_array_equal(decode_photograph(encoded(like, "PNG")).image[..., 0], grey)
