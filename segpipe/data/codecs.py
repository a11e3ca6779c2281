"""Bytes -> photograph, safely; mask -> PNG bytes."""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from segpipe import kernels
from segpipe.data.arrays import Image8
from segpipe.data.headers import png_palette
from segpipe.data.photograph import MAX_MEGAPIXELS, Photograph
from segpipe.data.pictures import read_netpbm, read_picture
from segpipe.data.tiff import read_tiff
from segpipe.errors import Fault, RejectedImage

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")  # Pillow's names, of drawings
EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "tif", "tiff"),
        *("bmp", "webp", "gif", "ppm", "pgm", "pnm", "dcm", "dicom"),
        *("jp2", "j2k", "avif", "heic", "heif", "jxl"),
    )
)
SIGNATURES = re.compile(  # how a file of each kind begins: the content decides, not the name
    rb"(?P<DICOM>.{128}DICM|\x02\0[\0-\x02]\0(?:UL\x04\0|OB\0\0|UI)"
    rb"|\x08\0[\0\x01\x05\x08\x12-\x18]\0(?:(?:UL|CS|DA|TM|UI).\0|.\0\0\0))"
    rb"|(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)"
    rb"|(?P<WEBP>RIFF....WEBPVP8[ LX])|(?P<PPM>P[1-6f]\s)"
    rb"|(?P<JPEG2000>\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51)"
    rb"|(?P<AVIF>....ftyp(?:avi[fs]|m[is][fa][1f]....(?:....){,16}?avi[fs]))"
    rb"|(?P<HEIF>....ftyp(?:he[iv][cmsx]|m[is][fa][1f]....(?:....){,16}?he[iv][cmsx]))"
    rb"|(?P<JXL>\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n)",
    re.DOTALL,
)
WHITE = 255
MASK_PALETTE = (0, 0, 0, 255, 255, 255, 128, 128, 128)  # outside black, vessel white, retina grey
KINDS_PALETTE = (*(0, 0, 0), *(255, 0, 0), *(0, 0, 255), *(0, 255, 0), *(128, 128, 128))
"""Of kinds of vessels: outside black, arteries red, veins blue, crossings green, retina grey."""
MASK_BITS, KINDS_BITS = 2, 4  # of a pixel in its PNG
FOUR_TO_TOP = np.uint32(1 << 30 | 1 << 20 | 1 << 10 | 1)  # times 4 pixels of 2 bits: in 8 top bits
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# ---- in: bytes -> photograph


def decode_image(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> Image8:
    """An encoded photograph, or mask -> image [H, W, 3] uint8 RGB, as decode_photograph's."""
    return _decoded(data, max_megapixels, math.inf, masks=True).image


def decode_photograph(
    data: bytes, max_megapixels: float = MAX_MEGAPIXELS, enough: float = math.inf
) -> Photograph:
    """A file in a format of docs/formats.md -> its first picture, 8 bits a channel.

    The content says which format it is. EXIF's orientation is reported and not applied, so that a
    mask lies on its file's own pixels. Of more than 8 bits the upper 8 of those that are used
    count (`depth.used_bits`); floats and 32 bit integers are scaled by `depth.from_numbers`. Grey
    is repeated, alpha dropped, a palette looked up; embedded colour profiles and gamma are ignored,
    as in the sets that networks are trained on. A JPEG comes reduced where its shorter side keeps
    `enough` px.

    Raises RejectedImage, in one line that is the same for all files of one fault, for bytes that
    are no image, are cut off, have a side of less than 16 px or more than `max_megapixels` (both
    checked before any pixel is decoded), or are a mask that segpipe wrote. Nothing else is raised,
    whatever the bytes.
    """
    return _decoded(data, max_megapixels, enough, masks=False)


def _decoded(data: bytes, max_megapixels: float, enough: float, masks: bool) -> Photograph:
    """As decode_photograph; `masks` are taken as well."""
    if not data:
        raise RejectedImage(Fault.EMPTY_FILE, "empty file")
    found = SIGNATURES.match(data)
    if not found or not found.lastgroup:
        raise RejectedImage(Fault.UNKNOWN_FORMAT, "not an image in a known format")
    kind = found.lastgroup
    read = {"DICOM": _read_dicom, "TIFF": read_tiff, "PPM": read_netpbm, "JXL": _read_jxl}.get(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of faults that are rejected here, or do no harm
        try:
            if kind == "PNG" and not masks and png_palette(data) == bytes(MASK_PALETTE):
                raise RejectedImage(
                    Fault.SEGPIPE_MASK, "is a mask as segpipe writes them, not a photograph"
                )
            if read:
                return read(data, kind, max_megapixels)
            return read_picture(data, kind, max_megapixels, enough)
        except RejectedImage:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
            fault, sentence = _fault(kind, error)
            raise RejectedImage(fault, f"cannot be decoded: {sentence}") from error


def _fault(kind: str, error: Exception) -> tuple[Fault, str]:
    """What is wrong with a file that raised `error`, in words that are the same for each file."""
    if isinstance(error, MemoryError):
        return Fault.TOO_MUCH_MEMORY, "needs more memory than there is"
    if "MAX_TEXT" in str(error):  # Pillow's guard against texts that unpack to gigabytes
        return Fault.OVERSIZED_METADATA, f"{kind} with an oversized text or colour profile"
    if not isinstance(error, UnidentifiedImageError):
        return Fault.DAMAGED_FILE, f"cut off or damaged {kind}"
    return Fault.UNREADABLE_FILE, f"damaged or unsupported {kind}"


def _read_dicom(data: bytes, kind: str, max_megapixels: float) -> Photograph:
    try:
        from segpipe.data.dicom import read_dicom
    except ImportError as error:
        raise RejectedImage(
            Fault.MISSING_DICOM_EXTRA, f"{kind} needs the extra segpipe[dicom]"
        ) from error
    return read_dicom(data, max_megapixels)


def _read_jxl(data: bytes, kind: str, max_megapixels: float) -> Photograph:
    try:
        from segpipe.data.jxl import read_jxl
    except ImportError as error:
        raise RejectedImage(Fault.MISSING_EXTRA, "JPEG XL needs the extra segpipe[jxl]") from error
    return read_jxl(data, max_megapixels)


# ---- masks


def encode_mask(mask: Image8, orientation: int = 1) -> bytes:
    """mask [H, W] uint8 in {0, 1, 2} -> palette PNG: black, white, mid-grey.

    Written out here (PNG, third edition, sections 5, 7, 11), as Pillow takes thrice as long. With
    its photograph's EXIF `orientation` (1 to 8) it lies on the pixels that file stores, and viewers
    turn both alike.
    """
    return _of_palette(mask, MASK_BITS, MASK_PALETTE, orientation)


def encode_kinds(kinds: Image8, orientation: int = 1) -> bytes:
    """kinds [H, W] uint8 in {0, 1, 2, 3, 4}: outside, artery, vein, crossing, background -> palette
    PNG, with its photograph's EXIF orientation (1 to 8)."""
    return _of_palette(kinds, KINDS_BITS, KINDS_PALETTE, orientation)


def _of_palette(image: Image8, bits: int, palette: tuple[int, ...], orientation: int) -> bytes:
    if kernels.missing():
        joined = _fours(image) if bits == MASK_BITS else _pairs(image)
        rows = _deflated(joined, zlib.Z_RLE)  # zlib knows no faster, and here no smaller
    else:
        rows = kernels.packed_rows(image, bits)
    return _png(image.shape, bits, rows, orientation, bytes(palette))


def encode_grey(image: Image8, orientation: int = 1) -> bytes:
    """image [H, W] uint8 -> greyscale PNG, with its photograph's EXIF orientation (1 to 8).

    Made for what was enlarged: 8 megapixels of scores take 20 ms and 1.4 MB by the kernels, else 60
    and 1.6, and Pillow's 115 and 1.7 (results/probabilities.md).
    """
    if kernels.missing():
        rows = _deflated(_differences(image), zlib.Z_DEFAULT_STRATEGY)
    else:
        rows = kernels.packed_rows(image)
    return _png(image.shape, 8, rows, orientation)


def _png(
    shape: tuple[int, ...], bits: int, rows: bytes, orientation: int, palette: bytes = b""
) -> bytes:
    """A file of grey pixels, or of those of a palette, with rows as its IDAT holds them."""
    height, width = shape
    colours = 3 if palette else 0
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))]
    if palette:
        chunks.append((b"PLTE", palette))
    if orientation != 1:
        exif = _exif(orientation).tobytes()
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", rows), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)


def _differences(image: Image8) -> Image8:
    """image [H, W] -> [H, 1 + W]: of each row what it differs by from the one above."""
    rows = np.full((image.shape[0], 1 + image.shape[1]), 2, np.uint8)  # that filter's number
    rows[0, 1:] = image[0]
    np.subtract(image[1:], image[:-1], out=rows[1:, 1:])
    return rows


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    if orientation != 1:  # which is what a file without any means
        exif[ExifTags.Base.Orientation] = orientation
    return exif


def _fours(mask: Image8) -> Image8:
    """mask [H, W] -> [H, 1 + W/4 rounded up] uint8: no filter, then four pixels a byte."""
    if mask.shape[1] % 4:
        mask = np.pad(mask, ((0, 0), (0, -mask.shape[1] % 4)))
    fours = np.ascontiguousarray(mask).view("<u4")
    rows = np.zeros((len(fours), 1 + fours.shape[1]), np.uint8)
    rows[:, 1:] = fours * FOUR_TO_TOP >> 24
    return rows


def _pairs(kinds: Image8) -> Image8:
    """kinds [H, W] -> [H, 1 + W/2 rounded up] uint8: no filter, then two pixels a byte."""
    if kinds.shape[1] % 2:
        kinds = np.pad(kinds, ((0, 0), (0, 1)))
    rows = np.zeros((len(kinds), 1 + kinds.shape[1] // 2), np.uint8)
    np.left_shift(kinds[:, ::2], KINDS_BITS, out=rows[:, 1:])
    rows[:, 1:] |= kinds[:, 1::2]
    return rows


def _deflated(rows: Image8, strategy: int) -> bytes:
    packer = zlib.compressobj(1, strategy=strategy)
    return packer.compress(rows.data) + packer.flush()


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(body, zlib.crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
