"""Files of 16 bits come as the same picture in 8 bits, however many of them are used.

Run: pytest tests/test_depth.py
"""

import numpy as np
import pytest
from files import encoded, png16, smooth, tiff
from PIL import Image

from segpipe.data import depth
from segpipe.data.codecs import decode_photograph
from segpipe.errors import Fault, RejectedImage

EIGHT = smooth()  # to 189 of 255
DARK = EIGHT // 2  # to 94: half the light
GREY = np.ascontiguousarray(EIGHT[..., 0])
ALL = np.random.default_rng(1).integers(0, 65536, EIGHT.shape, np.uint16)


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """As a camera of so many bits would see the same light, whatever its lowest bits."""
    noise = np.random.default_rng(0).random(values.shape)
    most = 2**bits - 1
    return np.clip(values * (most / 255) + noise * (most / 255 / 2), 0, most).astype(np.uint16)


def ppm(values: np.ndarray) -> bytes:
    magic = b"P6" if values.ndim == 3 else b"P5"
    height, width = values.shape[:2]
    return b"%s %d %d 65535\n" % (magic, width, height) + values.astype(">u2").tobytes()


def plain(values: np.ndarray) -> bytes:
    magic = b"P3" if values.ndim == 3 else b"P2"
    height, width = values.shape[:2]
    text = b"\n".join(b"%d" % value for value in values.ravel())
    return b"%s %d %d 65535\n" % (magic, width, height) + text


def rgb_or_grey(values: np.ndarray, **options: object) -> bytes:
    return tiff(values, "rgb" if values.ndim == 3 else "minisblack", **options)


def jpeg_2000(values: np.ndarray) -> bytes:
    imagecodecs = pytest.importorskip("imagecodecs")
    return imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=16)


WRITERS = {
    "PNG": png16,
    "TIFF": rgb_or_grey,
    "deflate TIFF": lambda values: rgb_or_grey(values, compression="deflate", predictor=True),
    "big-endian tiled TIFF": lambda values: rgb_or_grey(values, byteorder=">", tile=(16, 16)),
    "PPM": ppm,
    "plain PPM": plain,
    "JPEG 2000": jpeg_2000,
}


def assert_same(data: bytes, wanted: np.ndarray, bits: int) -> None:
    """As `wanted` [H, W] or [H, W, 3] in 8 bits, and a note that tells how many are used."""
    found = decode_photograph(data)
    wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2)
    np.testing.assert_allclose(found.image.astype(int), wanted, atol=1)
    assert found.note == ("" if bits == 16 else f"16 bits of which {bits} are used")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("values", [EIGHT, GREY], ids=["RGB", "grey"])
def test_a_picture_of_few_bits_comes_as_it_does_in_eight(writer, bits, values):
    """As a camera writes them; and as a program does that shifts 8 bits up."""
    assert_same(WRITERS[writer](scaled(values, bits)), values, bits)
    assert_same(WRITERS[writer](values.astype(np.uint16) << (bits - 8)), values, bits)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("bits", [9, 11, 13, 15])
def test_eight_bits_that_were_shifted_up_are_known_by_the_zeros_below(writer, bits):
    """Also where the picture is dark, so that its largest sample would say something else."""
    for values in (EIGHT, DARK):
        assert_same(WRITERS[writer](values.astype(np.uint16) << (bits - 8)), values, bits)


@pytest.mark.parametrize("writer", WRITERS)
def test_eight_bits_twice_are_those_eight(writer):
    """As Photoshop and others make 16 of 8: dark pictures are not made light."""
    for values in (EIGHT, EIGHT // 4, GREY // 4):
        assert_same(WRITERS[writer](values.astype(np.uint16) * 257), values, 16)


@pytest.mark.parametrize("writer", WRITERS)
def test_sixteen_bits_that_are_all_used_stay_as_they_are(writer):
    """Byte for byte the upper ones."""
    for values in (ALL, ALL[..., 0]):
        found = decode_photograph(WRITERS[writer](values)).image.astype(int)
        wanted = np.broadcast_to((values >> 8).reshape(*values.shape[:2], -1), found.shape)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_picture_without_light_is_not_made_of_noise(writer):
    """What 7 bits of 16 hold is the noise of a dark room."""
    noise = np.random.default_rng(0).integers(0, 128, EIGHT.shape, np.uint16)
    found = decode_photograph(WRITERS[writer](noise))
    assert (found.image.max(), found.note) == (0, "")


@pytest.mark.parametrize("values", [EIGHT // 4, GREY // 4], ids=["RGB", "grey"])
@pytest.mark.parametrize(("bits", "says"), [(12, 4095), (12, 3000), (13, 8191), (14, 16383)])
def test_the_maximum_that_a_tiff_states_counts_for_a_dark_picture(values, bits, says):
    """A quarter of the light of 12 bits would be taken for 10."""
    deep = scaled(values, bits)
    tag = [(281, 3, values.ndim and 1, says, True)]
    assert_same(rgb_or_grey(deep, extratags=tag), values, bits)
    assert decode_photograph(rgb_or_grey(deep)).image.max() > 2 * values.max() - 2


@pytest.mark.parametrize("says", [0, 100, 255, 1000])
def test_a_maximum_that_is_exceeded_counts_for_nothing(says):
    """As where a program that changes the samples leaves the tag as it was."""
    tag = [(281, 3, 1, says, True)]
    assert_same(rgb_or_grey(scaled(GREY, 12), extratags=tag), GREY, 12)
    all_used = decode_photograph(rgb_or_grey(ALL[..., 0], extratags=tag))
    np.testing.assert_array_equal(all_used.image[..., 0], ALL[..., 0] >> 8)


@pytest.mark.parametrize("values", [EIGHT // 4, GREY // 4], ids=["RGB", "grey"])
def test_the_significant_bits_of_a_png_count_for_a_dark_picture(values):
    """12 of 16, which some leave where they came and the standard has scaled up to 16."""
    deep = scaled(values, 12)
    assert_same(png16(deep, significant=12), values, 12)
    assert_same(png16(deep << 4 | deep >> 8, significant=12), values, 16)
    assert_same(png16(scaled(values, 13), significant=13), values, 13)


def test_alpha_is_no_sample_of_the_picture():
    opaque = np.full((*GREY.shape, 1), 4095, np.uint16)
    deep = np.concatenate([scaled(EIGHT, 12), opaque], axis=2)
    assert_same(png16(deep), EIGHT, 12)
    assert_same(tiff(deep, "rgb", extrasamples=["unassalpha"]), EIGHT, 12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_keeps_its_pixels_where_they_are_stored(orientation):
    """OpenCV turns what it reads, as Pillow does."""
    tag = [(274, 3, 1, orientation, True)]
    for values in (EIGHT.astype(np.uint16) << 4, EIGHT.astype(np.float32)):
        found = decode_photograph(tiff(values, "rgb", extratags=tag))
        np.testing.assert_array_equal(found.image, EIGHT)
        assert found.orientation == orientation


def test_few_bits_in_a_layout_that_opencv_reads_wrong_are_named():
    """Planes apart: OpenCV 5.0.0 mixes them up without a word, so both decoders must agree."""
    planes = np.ascontiguousarray(np.moveaxis(EIGHT.astype(np.uint16) << 4, 2, 0))
    with pytest.raises(RejectedImage, match="16 bits of which few are used") as rejection:
        decode_photograph(tiff(planes, "rgb", planarconfig="separate"))
    assert rejection.value.fault == Fault.UNSUPPORTED_PIXELS
    dark = np.ascontiguousarray(np.moveaxis(scaled(DARK, 16), 2, 0))
    found = decode_photograph(tiff(dark, "rgb", planarconfig="separate"))
    np.testing.assert_allclose(found.image.astype(int), DARK, atol=1)


@pytest.mark.parametrize("dtype", ["i4", "f4"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_numbers_without_a_range_fill_that_of_a_camera(dtype, bits):
    found = decode_photograph(tiff(scaled(GREY, bits).astype(dtype)))
    np.testing.assert_allclose(found.image[..., 0].astype(int), GREY, atol=1)
    assert found.note == f"pixel values of {bits} bits"


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"compression": "deflate", "predictor": True},
        {"tile": (16, 16)},
        {"rowsperstrip": 5},
    ],
)
@pytest.mark.parametrize("alpha", [False, True])
def test_floats_of_colour_are_read_as_grey_ones_are(scale, options, alpha):
    values = EIGHT.astype(np.float32) * np.float32(scale)
    if alpha:
        values = np.concatenate([values, values[..., :1]], axis=2)
        options = options | {"extrasamples": ["unassalpha"]}
    found = decode_photograph(tiff(values, "rgb", **options))
    np.testing.assert_allclose(found.image.astype(int), EIGHT, atol=1)
    assert found.note == ""


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1, 65536])
def test_floats_of_colour_that_are_none_are_named(bad):
    values = EIGHT.astype(np.float32)
    values[3, 4, 1] = bad
    with pytest.raises(RejectedImage, match="pixel values") as rejection:
        decode_photograph(tiff(values, "rgb"))
    assert rejection.value.fault == Fault.INVALID_PIXEL_VALUES


def test_floats_of_colour_in_planes_apart_are_named():
    planes = np.ascontiguousarray(np.moveaxis(EIGHT.astype(np.float32), 2, 0))
    with pytest.raises(RejectedImage, match="of a kind that is not read") as rejection:
        decode_photograph(tiff(planes, "rgb", planarconfig="separate"))
    assert rejection.value.fault == Fault.UNSUPPORTED_PIXELS


@pytest.mark.parametrize(
    ("samples", "stated", "bits"),
    [
        ([127], 0, 16),
        ([128], 0, 8),
        ([255], 0, 8),
        ([256 + 3], 0, 10),
        ([257], 0, 16),
        ([1023], 0, 10),
        ([1024 + 1], 0, 12),
        ([16383], 0, 14),
        ([16384 + 1], 0, 16),
        ([n << 7 for n in range(33)], 0, 15),
        ([n << 7 for n in range(31)], 0, 12),  # too few levels to tell
        ([200 << 4, 90 << 4, 40 << 4], 0, 12),
        ([4095, 1], 65535, 16),
        ([0], 0, 16),
    ],
)
def test_the_bits_that_are_used(samples, stated, bits):
    assert depth.used_bits(np.array([samples], np.uint16), stated) == bits


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_a_jpeg_2000_of_its_own_depth_is_scaled_by_it(bits):
    """Also white, which Pillow 13.0.0 turns to black where there are colours."""
    imagecodecs = pytest.importorskip("imagecodecs")
    for values in (EIGHT, GREY, DARK, 255 - EIGHT):
        deep = scaled(values, bits)
        data = imagecodecs.jpeg2k_encode(deep, level=0, reversible=True, bitspersample=bits)
        assert_same(data, values, 16)


def test_eight_bits_are_never_asked():
    """A dark picture of 8 bits stays as it is, in every format."""
    for kind in ("PNG", "TIFF", "PPM"):
        found = decode_photograph(encoded(Image.fromarray(DARK), kind))
        np.testing.assert_array_equal(found.image, DARK)
        assert found.note == ""
