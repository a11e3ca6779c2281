"""DICOM photographs become images or a reason.

Run: pytest tests/test_dicom.py
"""

import io
import struct
import sys
import tracemalloc
import warnings
import zlib

import cv2
import numpy as np
import pytest
from files import dicom, encapsulated, header, smooth, written
from PIL import Image
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from segpipe.data.codecs import decode_photograph
from segpipe.errors import RejectedImage

PIXELS = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (31, 47, 3), np.uint16)
DAMAGED = "cannot be decoded: cut off or damaged DICOM"
UNREAD_COLOURS = "DICOM with colours of a kind that is not read"


def jpeg(picture: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def reason(data: bytes, max_megapixels: float = 200.0) -> str:
    with pytest.raises(RejectedImage) as rejection:
        decode_photograph(data, max_megapixels)
    assert str(rejection.value).isprintable()
    return str(rejection.value)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


# ---- read right


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_rgb_comes_back_pixel_by_pixel(syntax):
    found = decode_photograph(dicom(PIXELS, "RGB", syntax))
    np.testing.assert_array_equal(found.image, PIXELS)
    assert (found.image.dtype, found.orientation, found.note) == (np.uint8, 1, "")
    deep = decode_photograph(dicom(DEEP, "RGB", syntax)).image
    np.testing.assert_array_equal(deep, DEEP >> 8)


def test_colours_in_planes_are_brought_together():
    dataset = header(PIXELS, "RGB")
    dataset.PlanarConfiguration = 1
    data = written(dataset, np.ascontiguousarray(PIXELS.transpose(2, 0, 1)))
    np.testing.assert_array_equal(decode_photograph(data).image, PIXELS)


def test_ybr_comes_as_opencv_converts_it():
    luma = cv2.cvtColor(smooth(), cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    image = decode_photograph(dicom(luma, "YBR_FULL")).image.astype(int)
    np.testing.assert_allclose(image, smooth(), atol=2)


def test_halved_ybr_is_spread_over_both_pixels():
    """Two luma samples, then the two chroma samples that both share."""
    luma = cv2.cvtColor(smooth(), cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    chroma = luma[:, ::2, 1:]
    packed = np.concatenate([luma[:, ::2, :1], luma[:, 1::2, :1], chroma], axis=2)
    shared = luma.copy()
    shared[:, ::2, 1:] = shared[:, 1::2, 1:] = chroma
    wanted = cv2.cvtColor(shared[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB)
    data = written(header(smooth(), "YBR_FULL_422"), packed)
    np.testing.assert_allclose(decode_photograph(data).image.astype(int), wanted, atol=2)


@pytest.mark.parametrize(
    ("bits", "dtype"), [(8, "u1"), (4, "u1"), (10, "u2"), (12, "u2"), (16, "u2")]
)
def test_stored_bits_fill_the_range(bits, dtype):
    values = np.random.default_rng(bits).integers(0, 2**bits, (31, 47)).astype(dtype)
    values[0, :2] = 0, 2**bits - 1
    wanted = values.astype(int) * 255 / (2**bits - 1)
    light = decode_photograph(dicom(values, "MONOCHROME2", BitsStored=bits, HighBit=bits - 1)).image
    np.testing.assert_allclose(light.astype(int), grey(wanted), atol=1)
    assert (light.min(), light.max()) == (0, 255)
    dark = decode_photograph(dicom(values, "MONOCHROME1", BitsStored=bits, HighBit=bits - 1)).image
    np.testing.assert_array_equal(dark, 255 - light)


@pytest.mark.parametrize(
    ("window", "wanted"),
    [(None, 10), ((2048, 4096), 12), ((400, 300), 10), ((32768, 65536), 16)],
    ids=["none", "12 bits", "of the contrast alone", "16 bits"],
)
def test_a_window_tells_how_many_of_sixteen_bits_are_used(window, wanted):
    """Values to 1000: of 10 bits, where the window does not reach further. It is not applied."""
    values = np.linspace(0, 1000, 31 * 47).reshape(31, 47).astype(np.uint16)
    more = dict(zip(("WindowCenter", "WindowWidth"), window, strict=True)) if window else {}
    found = decode_photograph(dicom(values, "MONOCHROME2", **more))
    np.testing.assert_array_equal(found.image, grey(values >> (wanted - 8)))
    assert found.note == ("" if wanted == 16 else f"16 bits of which {wanted} are used")


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_file_without_a_preamble_is_read(syntax, meta):
    """Out of an old archive: it begins with its meta information, or with its dataset."""
    data = dicom(PIXELS, "RGB", syntax)[132:]
    if not meta:
        data = data[12 + struct.unpack_from("<I", data, 8)[0] :]
    np.testing.assert_array_equal(decode_photograph(data).image, PIXELS)


def test_bits_above_those_stored_do_not_count():
    """Old files keep overlays there."""
    values = np.random.default_rng(0).integers(0, 4096, (31, 47)).astype(np.uint16)
    overlaid = values | 0x8000
    clean, marked = (
        decode_photograph(dicom(v, "MONOCHROME2", BitsStored=12, HighBit=11)).image
        for v in (values, overlaid)
    )
    np.testing.assert_array_equal(clean, marked)


def paletted(indices: np.ndarray, colours: np.ndarray, first: int, syntax: str) -> bytes:
    """indices [H, W] and colours [N, 3] uint8 or uint16, of which index `first` is the first."""
    dataset = header(indices, "PALETTE COLOR", syntax)
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    for name, table in zip(("Red", "Green", "Blue"), colours.T, strict=True):
        keyword = f"{name}PaletteColorLookupTable"
        bits = 8 * table.dtype.itemsize
        setattr(dataset, f"{keyword}Descriptor", [len(table) % 2**16, first, bits])
        raw = table.astype(table.dtype.newbyteorder(order)).tobytes()
        setattr(dataset, f"{keyword}Data", raw + bytes(len(raw) % 2))
    return written(dataset, indices)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("depth", ["u1", "u2"])
@pytest.mark.parametrize(
    ("num", "first", "dtype"), [(255, 0, "u1"), (200, 20, "u1"), (3000, 9, "u2")]
)
def test_a_palette_is_looked_up(num, first, dtype, depth, syntax):
    """Indices below the first entry take it, those above the last take that."""
    colours = np.random.default_rng(2).integers(0, 256 ** int(depth[1]), (num, 3)).astype(depth)
    highest = np.iinfo(dtype).max
    indices = np.random.default_rng(3).integers(0, highest + 1, (31, 47)).astype(dtype)
    wanted = colours[np.clip(indices.astype(int) - first, 0, num - 1)]
    image = decode_photograph(paletted(indices, colours, first, syntax)).image
    np.testing.assert_array_equal(image, wanted if depth == "u1" else wanted >> 8)


@pytest.mark.parametrize("kind", ["YBR_FULL_422", "YBR_FULL", "RGB"])
def test_a_jpeg_comes_as_opencv_decodes_it(kind):
    """Also where the file calls it RGB, as a JFIF marker says that it is not."""
    frame = jpeg(smooth())
    wanted = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR_RGB)
    data = encapsulated([frame], kind, JPEGBaseline8Bit, smooth())
    image = decode_photograph(data).image.astype(int)
    np.testing.assert_allclose(image, wanted, atol=4)
    np.testing.assert_allclose(image, smooth(), atol=12)


def with_adobe(frame: bytes, transform: int) -> bytes:
    """A JPEG with Adobe's marker in place of JFIF's."""
    (length,) = struct.unpack_from(">H", frame, 4)
    marker = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return frame[:2] + marker + frame[4 + length :]


def test_a_jpeg_with_an_adobe_marker_is_converted_once():
    frame = with_adobe(jpeg(smooth()), 1)
    data = encapsulated([frame], "YBR_FULL_422", JPEGBaseline8Bit, smooth())
    np.testing.assert_allclose(decode_photograph(data).image.astype(int), smooth(), atol=12)


def test_a_jpeg_of_rgb_samples_is_not_converted():
    frame = jpeg(smooth(), keep_rgb=True)
    data = encapsulated([frame], "RGB", JPEGBaseline8Bit, smooth())
    np.testing.assert_allclose(decode_photograph(data).image.astype(int), smooth(), atol=12)


def test_a_grey_jpeg_is_repeated():
    values = smooth()[..., 2]
    data = encapsulated([jpeg(values)], "MONOCHROME2", JPEGBaseline8Bit, values)
    np.testing.assert_allclose(decode_photograph(data).image.astype(int), grey(values), atol=6)


@pytest.mark.parametrize("kind", ["RGB", "YBR_RCT"])
def test_lossless_jpeg_2000_comes_back_pixel_by_pixel(kind):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(
        buffer, "JPEG2000", irreversible=False, mct=int(kind == "YBR_RCT"), no_jp2=True
    )
    data = encapsulated([buffer.getvalue()], kind, JPEG2000Lossless, PIXELS)
    np.testing.assert_array_equal(decode_photograph(data).image, PIXELS)


def test_run_lengths_come_back_pixel_by_pixel():
    dataset = header(PIXELS, "RGB")
    dataset.PixelData = PIXELS.tobytes() + bytes(PIXELS.size % 2)
    dataset.compress(RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    np.testing.assert_array_equal(decode_photograph(buffer.getvalue()).image, PIXELS)


def test_of_several_frames_the_first_counts_and_the_note_says_so():
    frames = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2])
    dataset = header(PIXELS, "RGB")
    dataset.NumberOfFrames = 3
    jpegs = [jpeg(smooth()), jpeg(255 - smooth())]
    compressed = encapsulated(jpegs, "YBR_FULL_422", JPEGBaseline8Bit, smooth(), NumberOfFrames=2)
    for data, wanted, note, loss in (
        (written(dataset, frames), PIXELS, "first of 3 frames", 0),
        (compressed, smooth(), "first of 2 frames", 12),
    ):
        found = decode_photograph(data)
        np.testing.assert_allclose(found.image.astype(int), wanted, atol=loss)
        assert found.note == note


# ---- rejected


def test_without_pydicom_the_reason_names_the_extra(monkeypatch):
    data = dicom(PIXELS, "RGB")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.delitem(sys.modules, "segpipe.data.dicom", raising=False)
    assert reason(data) == "DICOM needs the extra segpipe[dicom]"


CUT = {
    "native": dicom(PIXELS, "RGB"),
    "JPEG": encapsulated([jpeg(smooth())], "YBR_FULL_422", JPEGBaseline8Bit, smooth()),
    "palette": paletted(PIXELS[..., 0], PIXELS[:5, 0], 0, ExplicitVRLittleEndian),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_off_at_any_tenth_is_named_so(name):
    known = {DAMAGED, "DICOM without integer pixel data", "not an image in a known format"}
    for tenth in range(1, 10):
        assert reason(CUT[name][: len(CUT[name]) * tenth // 10]) in known


def test_nothing_but_zeros_behind_the_preamble_is_damaged():
    assert reason(bytes(128) + b"DICM") == DAMAGED
    assert reason(bytes(128) + b"DICM" + bytes(1000)) == DAMAGED


def test_a_header_of_too_many_megapixels_is_rejected_before_decoding():
    dataset = header(PIXELS, "RGB")
    dataset.Rows, dataset.Columns = 30000, 30000
    assert reason(written(dataset, b"")) == "more megapixels than --max-megapixels 200"
    assert reason(dicom(PIXELS, "RGB"), 0.001) == "more megapixels than --max-megapixels 0.001"


def test_a_frame_larger_than_its_header_is_rejected_before_decoding():
    """pydicom would decode all of it and only then compare."""
    frame = bytearray(jpeg(smooth()))
    struct.pack_into(">HH", frame, frame.index(b"\xff\xc0") + 5, 5000, 5000)
    data = encapsulated([bytes(frame)], "YBR_FULL_422", JPEGBaseline8Bit, smooth())
    assert reason(data) == "DICOM of a frame that has another size than its header"


def test_a_deflated_file_is_unpacked_no_further_than_its_header_says():
    """64 MiB of zeros in 64 KB, behind a picture of 4 KB; and a header of 900 megapixels."""
    tracemalloc.start()
    data = written(header(PIXELS, "RGB", DeflatedExplicitVRLittleEndian), bytes(2**26))
    assert len(data) < 2**17
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    assert reason(data) == DAMAGED
    assert tracemalloc.get_traced_memory()[1] - before < 2**21
    tracemalloc.stop()
    dataset = header(PIXELS, "RGB", DeflatedExplicitVRLittleEndian)
    dataset.Rows = dataset.Columns = 30000
    assert reason(written(dataset, PIXELS)) == "more megapixels than --max-megapixels 200"
    dataset = header(PIXELS, "RGB", DeflatedExplicitVRLittleEndian)
    dataset.NumberOfFrames = 10**6  # all of which would be unpacked
    assert reason(written(dataset, PIXELS)) == "more megapixels than --max-megapixels 200"


def test_a_deflated_file_within_a_deflated_file_is_not_unpacked():
    """pydicom takes what is unpacked for a whole file, where it begins as one does."""
    inner = written(header(PIXELS, "RGB", DeflatedExplicitVRLittleEndian), PIXELS)[132:]
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    meta = written(header(PIXELS, "RGB", DeflatedExplicitVRLittleEndian), PIXELS)
    start = 132 + 12 + struct.unpack_from("<I", meta, 132 + 8)[0]
    assert reason(meta[:start] + packer.compress(inner) + packer.flush()) == DAMAGED


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_a_frame_too_small_for_a_field_of_view_is_named_so(size):
    assert reason(dicom(np.zeros(size, np.uint8), "MONOCHROME2")) == (
        "too small: a side of less than 16 px"
    )


def test_a_file_without_pixels_is_named_so():
    """As a report or an index of a medium is."""
    dataset = header(PIXELS, "RGB")
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    assert reason(buffer.getvalue()) == "DICOM without integer pixel data"


def test_signed_pixels_are_named_so():
    data = dicom(DEEP[..., 0], "MONOCHROME2", PixelRepresentation=1)
    assert reason(data) == "DICOM of signed pixels"


def test_a_highbit_that_is_not_the_last_stored_one_is_named_so():
    """Values of 12 bits in the upper ones of 16, as old files have them: pydicom wraps them."""
    data = dicom(DEEP[..., 0] & 0xFFF0, "MONOCHROME2", BitsStored=12, HighBit=15)
    assert reason(data) == "DICOM whose HighBit is not BitsStored - 1"


@pytest.mark.parametrize("kind", ["HSV", "YBR_PARTIAL_422", "YBR_ICT", "PALETTE COLOR", ""])
def test_other_colours_are_named_so(kind):
    values = PIXELS[..., 0] if kind == "PALETTE COLOR" else PIXELS
    assert reason(dicom(values, kind)) == UNREAD_COLOURS


def test_ybr_of_sixteen_bits_is_named_so():
    """pydicom would convert it as if it had eight."""
    assert reason(dicom(DEEP, "YBR_FULL")) == UNREAD_COLOURS


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("BitsStored", 0),
        ("BitsStored", 9),
        ("BitsAllocated", 0),
        ("BitsAllocated", 24),
        ("SamplesPerPixel", 2),
        ("SamplesPerPixel", 1),
        ("NumberOfFrames", 2),
        ("NumberOfFrames", 2**31 - 1),
        ("Rows", 500),
    ],
)
def test_a_header_that_does_not_fit_its_pixels_is_damaged(keyword, value):
    assert reason(dicom(PIXELS, "RGB", **{keyword: value})) == DAMAGED


def test_a_missing_element_is_damaged():
    for keyword in ("Rows", "PhotometricInterpretation", "BitsAllocated", "SamplesPerPixel"):
        dataset = header(PIXELS, "RGB")
        delattr(dataset, keyword)
        buffer = io.BytesIO()
        dataset.PixelData = PIXELS.tobytes() + b"\0"
        dataset["PixelData"].VR = "OB"
        dataset.save_as(buffer, enforce_file_format=True)
        assert reason(buffer.getvalue()) == DAMAGED, keyword


def test_no_warning_of_pydicom_escapes():
    """It warns of superfluous bytes behind the pixels, and of colours that a JPEG contradicts."""
    noisy = [
        written(header(PIXELS, "RGB"), PIXELS.tobytes() + bytes(100)),
        encapsulated([jpeg(smooth())], "RGB", JPEGBaseline8Bit, smooth()),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in noisy:
            decode_photograph(data)
            assert not caught
            _ = dcmread(io.BytesIO(data)).pixel_array
            assert caught
            caught.clear()
