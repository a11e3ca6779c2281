"""Compressed frames of DICOM files: each transfer syntax comes back, or is named.

Encoders are imagecodecs, pyjpegls and pydicom's; decoders those of the extra.

Run: pytest tests/test_dicom_frames.py
"""

import struct
import sys

import imagecodecs
import numpy as np
import pytest
from files import compressed, encapsulated, smooth
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from segpipe.data.codecs import decode_photograph
from segpipe.errors import Fault, RejectedImage

EIGHT = smooth()
TWELVE = EIGHT.astype(np.uint16) << 4
PIXELS = {
    "RGB 8": (EIGHT, 8),
    "grey 8": (EIGHT[..., 1].copy(), 8),
    "RGB 12": (TWELVE, 12),
    "grey 12": (TWELVE[..., 1].copy(), 12),
}
JPIP = UID("1.2.840.10008.1.2.4.94")  # pixels that lie elsewhere
DAMAGED = "cannot be decoded: cut off or damaged DICOM"


def frame(syntax: str, values: np.ndarray, bits: int) -> bytes:
    """Encoded without loss where the syntax allows; RGB is never converted."""
    if syntax in (HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL):
        return imagecodecs.htj2k_encode(values, reversible=True, rgb=False)
    if syntax == JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(
            values, level=0, reversible=True, codecformat="j2k", bitspersample=bits
        )
    if syntax == JPEGLSLossless:
        return imagecodecs.jpegls_encode(values)
    options = {"colorspace": "RGB", "outcolorspace": "RGB"} if values.ndim == 3 else {}
    if syntax == JPEGExtended12Bit:
        return imagecodecs.jpeg8_encode(values, level=98, bitspersample=bits, **options)
    predictor = 1 if syntax == JPEGLosslessSV1 else 7
    return imagecodecs.jpeg8_encode(
        values, lossless=True, predictor=predictor, bitspersample=bits, **options
    )


def file(syntax: str, pixels: str, encoded: bytes | None = None) -> bytes:
    values, bits = PIXELS[pixels]
    kind = "RGB" if values.ndim == 3 else "MONOCHROME2"
    frames = [frame(syntax, values, bits) if encoded is None else encoded]
    return encapsulated(frames, kind, syntax, values, BitsStored=bits, HighBit=bits - 1)


def wanted(pixels: str) -> np.ndarray:
    return EIGHT if "RGB" in pixels else np.repeat(EIGHT[..., 1:2], 3, axis=2)


def rejection(data: bytes) -> RejectedImage:
    with pytest.raises(RejectedImage) as caught:
        decode_photograph(data)
    assert str(caught.value).isprintable()
    return caught.value


READ = [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K]
NEEDED = {  # what each needs beside pydicom
    JPEGLosslessSV1: "imagecodecs",
    JPEGLossless: "imagecodecs",
    JPEGLSLossless: "jpeg_ls",
    HTJ2K: "openjpeg",
}


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("syntax", [*READ, JPEG2000Lossless], ids=lambda s: s.keyword)
def test_a_lossless_frame_comes_back_pixel_by_pixel(syntax, pixels):
    found = decode_photograph(file(syntax, pixels))
    np.testing.assert_array_equal(found.image, wanted(pixels))
    assert found.note == ""


def test_colours_of_a_lossless_frame_are_what_the_file_says():
    """Also behind a JFIF marker, of which pydicom concludes that they are to be converted."""
    data = frame(JPEGLosslessSV1, EIGHT, 8)
    assert data[2:4] == b"\xff\xee"  # Adobe's, which says RGB
    jfif = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    found = decode_photograph(file(JPEGLosslessSV1, "RGB 8", data[:2] + jfif + data[18:]))
    np.testing.assert_array_equal(found.image, EIGHT)


@pytest.mark.parametrize("pixels", ["RGB 12", "grey 12"])
def test_jpeg_of_twelve_bits_keeps_its_upper_eight(pixels):
    image = decode_photograph(file(JPEGExtended12Bit, pixels)).image.astype(int)
    np.testing.assert_allclose(image, wanted(pixels), atol=2)


@pytest.mark.parametrize("pixels", PIXELS)
def test_frames_that_pydicom_encodes_come_back(pixels):
    """Its plug-in of pyjpegls, beside each other and in planes, and with loss."""
    values, bits = PIXELS[pixels]
    kind = "RGB" if values.ndim == 3 else "MONOCHROME2"
    for syntax, options in ((JPEGLSLossless, {}), (JPEGLSNearLossless, {"jls_error": 2})):
        image = decode_photograph(compressed(values, kind, syntax, bits, **options)).image
        np.testing.assert_allclose(image.astype(int), wanted(pixels), atol=2 if options else 0)


@pytest.mark.parametrize("syntax", [*READ, JPEG2000Lossless, JPEGExtended12Bit])
def test_a_frame_cut_off_anywhere_is_damaged(syntax):
    pixels = "grey 12" if syntax == JPEGExtended12Bit else "RGB 8"
    whole = frame(syntax, *PIXELS[pixels])
    for length in range(1, len(whole) - 2, max(1, len(whole) // 40)):
        assert str(rejection(file(syntax, pixels, whole[:length]))) == DAMAGED


@pytest.mark.parametrize("syntax", [*READ, JPEG2000Lossless, JPEGExtended12Bit])
def test_a_frame_larger_than_its_header_is_rejected_before_decoding(syntax, monkeypatch):
    """Its compressed header says 900 megapixels; no decoder is asked."""
    monkeypatch.setattr("segpipe.data.dicom.pixel_array", None)
    pixels = "grey 12" if syntax == JPEGExtended12Bit else "RGB 8"
    data = bytearray(frame(syntax, *PIXELS[pixels]))
    if data.startswith(b"\xff\x4f"):
        struct.pack_into(">II", data, 8, 30000, 30000)
    else:
        start = next(n for n in range(len(data)) if data[n : n + 2] in STARTS)
        struct.pack_into(">HH", data, start + 5, 30000, 30000)
    text = "DICOM of a frame that has another size than its header"
    assert str(rejection(file(syntax, pixels, bytes(data)))) == text


STARTS = (b"\xff\xc1", b"\xff\xc3", b"\xff\xf7")  # of a JPEG's frame: extended, lossless, LS


@pytest.mark.parametrize("syntax", NEEDED, ids=lambda s: s.keyword)
def test_without_its_decoder_a_transfer_syntax_is_named_with_the_extra(syntax, monkeypatch):
    """As where pydicom alone was installed: its own look for plug-ins is what is asked."""
    from pydicom.pixels import get_decoder

    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(get_decoder(UID(syntax)), "_available", {})
    found = rejection(file(syntax, "RGB 8"))
    assert found.fault == Fault.MISSING_DICOM_EXTRA
    text = "DICOM in a transfer syntax that needs all of segpipe[dicom]: "
    assert str(found) == f"{text}{UID(syntax).name} ({syntax})"


def test_a_transfer_syntax_that_is_never_read_is_named():
    data = file(JPEGLosslessSV1, "RGB 8")
    for syntax, name in ((JPIP, f"{JPIP.name} ({JPIP})"), ("1.2.3", "1.2.3")):
        padded = syntax.encode().ljust(22, b"\0")
        found = rejection(data.replace(JPEGLosslessSV1.encode(), padded))
        assert found.fault == Fault.UNSUPPORTED_PIXELS
        assert str(found) == f"DICOM in a transfer syntax that is not read: {name}"


def test_a_frame_of_another_process_than_its_transfer_syntax_is_damaged():
    """Colours of a lossy JPEG would be taken for those that a lossless one has."""
    lossy = imagecodecs.jpeg8_encode(EIGHT, level=95)
    lossless = frame(JPEGLosslessSV1, EIGHT, 8)
    assert str(rejection(file(JPEGLosslessSV1, "RGB 8", lossy))) == DAMAGED
    assert str(rejection(file(JPEGBaseline8Bit, "RGB 8", lossless))) == DAMAGED


def test_a_frame_of_other_samples_than_its_header_is_damaged():
    for pixels, other in (("RGB 8", "grey 8"), ("grey 8", "RGB 8"), ("grey 8", "grey 12")):
        data = file(JPEGLosslessSV1, pixels, frame(JPEGLosslessSV1, *PIXELS[other]))
        assert str(rejection(data)) == DAMAGED
