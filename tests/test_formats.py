"""docs/formats.md says what becomes of every variety of file, each of which is made here.

Run: pytest tests/test_formats.py
Write the table anew: python tests/test_formats.py --write
"""

import re
import struct
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import files
import imagecodecs
import numpy as np
import pytest
from files import compressed, dicom, encapsulated, encoded, heic, png16, smooth, tiff, tiff_pages
from PIL import Image
from pydicom import uid

from segpipe.data.codecs import EXTENSIONS, decode_photograph, encode_mask
from segpipe.errors import RejectedImage

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
BEGIN, END = "<!-- begin varieties -->\n", "<!-- end -->\n"
RGB = smooth()
GREY = np.ascontiguousarray(RGB[..., 0])
AS_GREY = np.repeat(GREY[..., None], 3, axis=2)
TWELVE = RGB.astype(np.uint16) << 4
SIXTEEN = RGB.astype(np.uint16) << 8 | np.uint16(77)
FLOATS = RGB.astype(np.float32)
PICTURE = Image.fromarray(RGB)


class Variety(NamedTuple):
    """A kind of file, made."""

    kind: str
    how: str
    data: bytes
    wanted: np.ndarray | None = RGB
    """What it must come back as; None of what is rejected."""
    loss: int = 1
    """In grey levels."""


def planes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(values, 2, 0))


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def frames(kind: str, **options: object) -> bytes:
    return encoded(PICTURE, kind, save_all=True, append_images=[PICTURE.rotate(180)], **options)


def pictures() -> Iterator[Variety]:
    """What Pillow and OpenCV write."""
    yield Variety("JPEG", "colour", encoded(RGB, "JPEG", quality=95), loss=8)
    yield Variety("JPEG", "progressive", encoded(RGB, "JPEG", quality=95, progressive=True), loss=8)
    yield Variety("JPEG", "grey", encoded(GREY, "JPEG", quality=95), AS_GREY, 8)
    cmyk = PICTURE.convert("CMYK")
    yield Variety("JPEG", "CMYK", encoded(cmyk, "JPEG", quality=95), loss=12)
    turned = encoded(RGB, "JPEG", quality=95, exif=exif(6))
    yield Variety("JPEG", "turned by EXIF (the mask is turned alike)", turned, loss=8)
    yield Variety("JPEG", "several pictures (MPO)", frames("MPO", quality=95), loss=8)
    yield Variety("PNG", "8 bits, colour", encoded(RGB, "PNG"))
    yield Variety("PNG", "8 bits, grey", encoded(GREY, "PNG"), AS_GREY)
    yield Variety("PNG", "palette", encoded(PICTURE.quantize(256), "PNG"), loss=40)
    alpha = PICTURE.copy()
    alpha.putalpha(Image.fromarray(GREY))
    yield Variety("PNG", "alpha (dropped)", encoded(alpha, "PNG"))
    yield Variety("PNG", "16 bits, colour", png16(SIXTEEN))
    yield Variety("PNG", "16 bits, grey", png16(SIXTEEN[..., 0]), AS_GREY)
    yield Variety("PNG", "12 bits in 16, colour", png16(TWELVE))
    yield Variety("PNG", "12 bits in 16, grey", png16(TWELVE[..., 0]), AS_GREY)
    yield Variety(
        "PNG", "12 bits in 16, a dark picture with sBIT 12", png16(TWELVE // 4, 12), RGB // 4
    )
    yield Variety("PNG", "a mask that segpipe wrote", encode_mask(GREY % 3), None)
    yield Variety("PNG", "animated", frames("PNG"))
    yield Variety("BMP", "24 bits", encoded(RGB, "BMP"))
    yield Variety("GIF", "256 colours", encoded(PICTURE.quantize(256), "GIF"), loss=40)
    yield Variety("GIF", "animated", frames("GIF"), loss=40)
    yield Variety("WebP", "lossy", encoded(RGB, "WEBP", quality=95), loss=12)
    yield Variety("WebP", "lossless", encoded(RGB, "WEBP", lossless=True))
    yield Variety("WebP", "animated", frames("WEBP", lossless=True))
    yield Variety("netpbm", "PPM of 8 bits", encoded(RGB, "PPM"))
    yield Variety("netpbm", "PPM of 16 bits", cv2.imencode(".ppm", SIXTEEN[..., ::-1])[1].tobytes())
    yield Variety(
        "netpbm", "PPM of 12 bits in 16", cv2.imencode(".ppm", TWELVE[..., ::-1])[1].tobytes()
    )
    yield Variety("netpbm", "PGM", encoded(GREY, "PPM"), AS_GREY)
    text = b" ".join(b"%d" % value for value in RGB.ravel())
    yield Variety("netpbm", "plain PPM", b"P3 64 48 255\n" + text)
    yield Variety("netpbm", "PFM, grey", encoded(Image.fromarray(FLOATS[..., 0]), "PPM"), AS_GREY)


def newer() -> Iterator[Variety]:
    """JPEG 2000, AVIF, and the formats of extras."""
    kind = "JPEG 2000"
    yield Variety(kind, "`.jp2`, lossless", encoded(RGB, "JPEG2000"))
    lossy = encoded(RGB, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[45])
    yield Variety(kind, "`.jp2`, lossy", lossy, loss=16)
    yield Variety(kind, "`.j2k`, a codestream in tiles", encoded(RGB, "JPEG2000", no_jp2=True))
    for bits, values in ((12, TWELVE), (16, SIXTEEN)):
        data = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits)
        yield Variety(kind, f"{bits} bits, colour", data)
    data = imagecodecs.jpeg2k_encode(TWELVE, level=0, reversible=True, bitspersample=16)
    yield Variety(kind, "12 bits in 16, colour", data)
    yield Variety("AVIF", "colour", encoded(RGB, "AVIF", quality=95), loss=12)
    yield Variety("AVIF", "turned by EXIF", encoded(RGB, "AVIF", quality=95, exif=exif(6)), loss=12)
    yield Variety("AVIF", "animated", frames("AVIF", quality=95), loss=12)
    yield Variety("HEIC", "colour, with `segpipe[heic]`", heic(), loss=6)
    for name, options in (("8 bits", {}), ("8 bits in a container", {"usecontainer": True})):
        data = imagecodecs.jpegxl_encode(RGB, lossless=True, **options)
        yield Variety("JPEG XL", f"{name}, with `segpipe[jxl]`", data)
    data = imagecodecs.jpegxl_encode(TWELVE, lossless=True, bitspersample=12)
    yield Variety("JPEG XL", "12 bits, with `segpipe[jxl]`", data)


def tiffs() -> Iterator[Variety]:
    """What tifffile and Pillow write."""
    read = ("lzw", "deflate", "packbits", "zstd", "lzma")
    yield Variety("TIFF", "8 bits, colour", tiff(RGB, "rgb"))
    for compression in read:
        yield Variety("TIFF", f"in {compression}", tiff(RGB, "rgb", compression=compression))
    yield Variety("TIFF", "in JPEG", encoded(RGB, "TIFF", compression="jpeg", quality=95), loss=8)
    yield Variety("TIFF", "in tiles", tiff(RGB, "rgb", tile=(16, 16)))
    yield Variety("TIFF", "planes apart", tiff(planes(RGB), "rgb", planarconfig="separate"))
    yield Variety("TIFF", "big-endian", tiff(RGB, "rgb", byteorder=">"))
    yield Variety("TIFF", "BigTIFF", tiff(RGB, "rgb", bigtiff=True))
    yield Variety(
        "TIFF", "BigTIFF, big-endian", tiff(RGB, "rgb", bigtiff=True, byteorder=">"), None
    )
    yield Variety("TIFF", "grey, white is zero", tiff(255 - GREY, "miniswhite"), AS_GREY)
    yield Variety("TIFF", "palette", encoded(PICTURE.quantize(256), "TIFF"), loss=40)
    yield Variety("TIFF", "CMYK", encoded(PICTURE.convert("CMYK"), "TIFF"), loss=12)
    yield Variety("TIFF", "L\\*a\\*b\\*", tiff(RGB, "cielab"), None)
    yield Variety("TIFF", "16 bits, colour", tiff(SIXTEEN, "rgb"))
    yield Variety("TIFF", "16 bits, grey", tiff(SIXTEEN[..., 0]), AS_GREY)
    for bits in (10, 12, 14):
        deep = RGB.astype(np.uint16) << (bits - 8)
        yield Variety("TIFF", f"{bits} bits in 16, colour", tiff(deep, "rgb"))
        yield Variety("TIFF", f"{bits} bits in 16, grey", tiff(deep[..., 0]), AS_GREY)
    says = [(281, 3, 1, 4095, True)]
    dark = tiff(TWELVE // 4, "rgb", extratags=says)
    yield Variety("TIFF", "12 bits in 16, a dark picture with MaxSampleValue", dark, RGB // 4)
    apart = tiff(planes(TWELVE), "rgb", planarconfig="separate")
    yield Variety("TIFF", "12 bits in 16, colour in planes apart", apart, None)
    yield Variety("TIFF", "32 bit integers, 0 to 255", tiff(GREY.astype("i4")), AS_GREY)
    yield Variety("TIFF", "32 bit floats, grey, 0 to 1", tiff(FLOATS[..., 0] / 255), AS_GREY)
    yield Variety("TIFF", "32 bit floats, grey, 0 to 255", tiff(FLOATS[..., 0]), AS_GREY)
    yield Variety("TIFF", "32 bit floats, colour, 0 to 1", tiff(FLOATS / 255, "rgb"))
    yield Variety("TIFF", "32 bit floats, colour, 0 to 255", tiff(FLOATS, "rgb"))
    negative = tiff(FLOATS - 1, "rgb")
    yield Variety("TIFF", "32 bit floats, colour, below 0", negative, None)
    apart = tiff(planes(FLOATS), "rgb", planarconfig="separate")
    yield Variety("TIFF", "32 bit floats, colour in planes apart", apart, None)
    yield Variety("TIFF", "64 bit floats", tiff(RGB.astype("f8"), "rgb"), None)
    yield Variety("TIFF", "complex numbers", tiff(GREY.astype("c8")), None)
    yield Variety("TIFF", "several pages", tiff_pages((RGB, 0), (255 - RGB, 0)))
    small = np.ascontiguousarray(RGB[::2, ::2])
    yield Variety("TIFF", "a thumbnail first", tiff_pages((small, 1), (RGB, 0)))
    yield Variety("TIFF", "reduced copies behind (a pyramid)", tiff_pages((RGB, 0), (small, 1)))
    for compression in ("webp", "jpeg2000", "jpegxl", "jpegxr", "lerc", "png"):
        data = tiff(RGB, "rgb", compression=compression)
        yield Variety("TIFF", f"in {compression}", data, None)


DICOM_CLASSES = [
    (uid.OphthalmicPhotography8BitImageStorage, {}, True),
    (uid.OphthalmicPhotography16BitImageStorage, {}, True),
    (uid.WideFieldOphthalmicPhotographyStereographicProjectionImageStorage, {}, True),
    (uid.WideFieldOphthalmicPhotography3DCoordinatesImageStorage, {}, True),
    (uid.VLPhotographicImageStorage, {}, True),
    (uid.SecondaryCaptureImageStorage, {"Modality": "OP", "ConversionType": "DI"}, True),
    (uid.SecondaryCaptureImageStorage, {"Modality": "OP", "ConversionType": "WSD"}, False),
    (uid.SecondaryCaptureImageStorage, {"Modality": "OT", "ConversionType": "DI"}, False),
    (uid.OphthalmicTomographyImageStorage, {}, False),
    (uid.OphthalmicOpticalCoherenceTomographyEnFaceImageStorage, {}, False),
    (uid.OphthalmicThicknessMapStorage, {}, False),
    (uid.SegmentationStorage, {}, False),
    (uid.RawDataStorage, {}, False),
    (uid.EncapsulatedPDFStorage, {}, False),
    (uid.CTImageStorage, {}, False),
]


def dicoms() -> Iterator[Variety]:
    """What pydicom writes."""
    for number, more, is_read in DICOM_CLASSES:
        says = ", ".join(f"{key} {value}" for key, value in more.items())
        how = f"{number.name}{f' ({says})' if says else ''}"
        data = dicom(RGB, "RGB", SOPClassUID=number, **more)
        yield Variety("DICOM", how, data, RGB if is_read else None)
    yield from dicom_pixels()
    yield from dicom_syntaxes()


def dicom_pixels() -> Iterator[Variety]:
    twelve = {"BitsStored": 12, "HighBit": 11}
    yield Variety("DICOM", "16 bits stored", dicom(SIXTEEN, "RGB"))
    yield Variety("DICOM", "12 bits stored", dicom(TWELVE, "RGB", **twelve))
    yield Variety("DICOM", "12 bits in 16 stored", dicom(TWELVE, "RGB"))
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    dark = dicom(TWELVE[..., 0] // 4, "MONOCHROME2", **window)
    yield Variety("DICOM", "12 bits in 16 stored, a dark picture with a window", dark, AS_GREY // 4)
    left = dicom(TWELVE << 4, "RGB", BitsStored=12, HighBit=15)
    yield Variety("DICOM", "12 bits in the upper ones of 16 (HighBit 15)", left, None)
    yield Variety("DICOM", "MONOCHROME1", dicom(255 - GREY, "MONOCHROME1"), AS_GREY)
    yield Variety("DICOM", "MONOCHROME2", dicom(GREY, "MONOCHROME2"), AS_GREY)
    luma = cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    yield Variety("DICOM", "YBR_FULL", dicom(luma, "YBR_FULL"), loss=3)
    yield Variety("DICOM", "HSV", dicom(RGB, "HSV"), None)
    signed = dicom(TWELVE[..., 0], "MONOCHROME2", PixelRepresentation=1)
    yield Variety("DICOM", "signed pixels", signed, None)
    two = files.header(RGB, "RGB")
    two.NumberOfFrames = 2
    yield Variety("DICOM", "several frames", files.written(two, np.stack([RGB, 255 - RGB])))
    yield Variety("DICOM", "no pixels", files.saved(files.header(RGB, "RGB")), None)
    data = dicom(RGB, "RGB")
    yield Variety("DICOM", "no preamble", data[132:])
    (length,) = struct.unpack_from("<I", data, 140)
    yield Variety("DICOM", "no preamble and no meta information", data[144 + length :])


def dicom_syntaxes() -> Iterator[Variety]:
    for syntax in (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ):
        yield Variety("DICOM", name_of(syntax), dicom(RGB, "RGB", syntax))
    yield Variety("DICOM", name_of(uid.RLELossless), compressed(RGB, "RGB", uid.RLELossless, 8))
    lossy = encoded(RGB, "JPEG", quality=95)
    data = encapsulated([lossy], "YBR_FULL_422", uid.JPEGBaseline8Bit, RGB)
    yield Variety("DICOM", name_of(uid.JPEGBaseline8Bit), data, loss=8)
    twelve = {"BitsStored": 12, "HighBit": 11}
    like = np.ascontiguousarray(TWELVE[..., 0])
    frame = imagecodecs.jpeg8_encode(like, level=98, bitspersample=12)
    data = encapsulated([frame], "MONOCHROME2", uid.JPEGExtended12Bit, like, **twelve)
    yield Variety("DICOM", f"{name_of(uid.JPEGExtended12Bit)}, 12 bits", data, AS_GREY, 2)
    for syntax, predictor in ((uid.JPEGLossless, 7), (uid.JPEGLosslessSV1, 1)):
        frame = imagecodecs.jpeg8_encode(RGB, lossless=True, predictor=predictor)
        yield Variety("DICOM", name_of(syntax), encapsulated([frame], "RGB", syntax, RGB))
    data = compressed(RGB, "RGB", uid.JPEGLSLossless, 8)
    yield Variety("DICOM", name_of(uid.JPEGLSLossless), data)
    data = compressed(RGB, "RGB", uid.JPEGLSNearLossless, 8, jls_error=2)
    yield Variety("DICOM", name_of(uid.JPEGLSNearLossless), data, loss=2)
    for syntax in (uid.JPEG2000Lossless, uid.JPEG2000):
        frame = imagecodecs.jpeg2k_encode(RGB, level=0, reversible=True, codecformat="j2k")
        yield Variety("DICOM", name_of(syntax), encapsulated([frame], "RGB", syntax, RGB))
    frame = imagecodecs.jpeg2k_encode(
        TWELVE, level=0, reversible=True, codecformat="j2k", bitspersample=12
    )
    data = encapsulated([frame], "RGB", uid.JPEG2000Lossless, TWELVE, **twelve)
    yield Variety("DICOM", f"{name_of(uid.JPEG2000Lossless)}, 12 bits of colour", data)
    for syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K):
        frame = imagecodecs.htj2k_encode(RGB, reversible=True, rgb=False)
        yield Variety("DICOM", name_of(syntax), encapsulated([frame], "RGB", syntax, RGB))
    for syntax in (uid.MPEG2MPML, uid.HEVCMP51, uid.JPIPHTJ2KReferenced):
        data = encapsulated([b"no frame"], "YBR_FULL_422", syntax, RGB)
        yield Variety("DICOM", name_of(syntax), data, None)


def name_of(syntax: uid.UID) -> str:
    return f"transfer syntax {syntax.name}"


def others() -> Iterator[Variety]:
    """What is no photograph, whole or at all."""
    yield Variety("any", "no bytes", b"", None)
    yield Variety("any", "a text, a PDF, a ZIP file, ...", b"%PDF-1.7 and more", None)
    yield Variety("any", "cut off", encoded(RGB, "JPEG")[:-100], None)
    large = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + files.chunk(b"IHDR", large)
    png += files.chunk(b"IDAT", b"") + files.chunk(b"IEND", b"")
    yield Variety("any", "more than `--max-megapixels`", png, None)
    yield Variety("any", "a side of less than 16 px", encoded(RGB[:15], "PNG"), None)


@cache
def varieties() -> list[Variety]:
    return [*pictures(), *newer(), *tiffs(), *dicoms(), *others()]


def row(variety: Variety) -> str:
    """What really becomes of it, as a row of the table."""
    try:
        note = decode_photograph(variety.data).note
        what = f"read; note `{note}`" if note else "read"
    except RejectedImage as rejection:
        what = f"`{rejection.fault.value}`: {rejection}"
    return f"| {variety.kind} | {variety.how} | {what} |"


def table() -> str:
    head = "| file | variety | |\n|---|---|---|\n"
    return head + "".join(f"{row(variety)}\n" for variety in varieties())


# ---- claims


@pytest.mark.parametrize("variety", varieties(), ids=lambda v: f"{v.kind} {v.how}")
def test_a_variety_comes_back_as_what_it_was_made_of_or_is_rejected(variety):
    if variety.wanted is None:
        with pytest.raises(RejectedImage):
            decode_photograph(variety.data)
        return
    image = decode_photograph(variety.data).image
    np.testing.assert_allclose(image.astype(int), variety.wanted, atol=variety.loss)


def test_no_whole_file_is_called_damaged():
    """But for those made so."""
    rows = [row(variety) for variety in varieties() if variety.kind != "any"]
    assert not [line for line in rows if "damaged" in line or "unreadable" in line]


def test_the_page_says_what_is_true():
    """`python tests/test_formats.py --write` where it does not."""
    assert BEGIN + table() + END in PAGE.read_text()


def test_the_suffixes_of_the_page_are_those_of_the_code():
    text = PAGE.read_text().partition("by its suffix:")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\.\w+)`", text)) == EXTENSIONS


def test_each_variety_is_another_one():
    assert len({(v.kind, v.how) for v in varieties()}) == len(varieties())
    assert len({v.data for v in varieties() if v.kind != "any"}) > 100


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/test_formats.py --write")
    main()
