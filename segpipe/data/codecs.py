"""Bytes -> photograph, safely; mask -> PNG bytes."""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from segpipe.errors import Fault, RejectedImage

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")  # Pillow's names
EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "tif", "tiff"),
        *("bmp", "webp", "gif", "ppm", "pgm", "pnm", "dcm", "dicom"),
    )
)
SIGNATURES = re.compile(  # how a file of each kind begins: the content decides, not the name
    rb"(?P<DICOM>.{128}DICM)|(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)"
    rb"|(?P<WEBP>RIFF....WEBPVP8[ LX])|(?P<PPM>P[1-6f]\s)",
    re.DOTALL,
)
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # but for restarts: what ends a scan
MAX_SCANS = 100  # of a JPEG, as libtiff has it: encoders write about 10
MAX_PAGES = 1000  # that are counted in a TIFF: its chain of pages may be a loop
FULL_RANGE = 65535  # of 16 bits
WHITE = 255
RARE_TIFF = "TIFF with pixels of a kind that is not read"  # 64 bits, float colours, L*a*b*
SMALLEST_SIDE = 16  # px: the search for the field of view wipes out what is thinner than 9
TURNED_BACK = {  # EXIF's orientation -> what undoes the turn for display
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
TURNED_FOR_DISPLAY = TURNED_BACK | {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
MASK_PALETTE = (0, 0, 0, 255, 255, 255, 128, 128, 128)  # outside black, vessel white, retina grey
MASK_BITS = 2  # of a mask's pixel in its PNG
FOUR_TO_TOP = np.uint32(1 << 30 | 1 << 20 | 1 << 10 | 1)  # times 4 pixels of 2 bits: in 8 top bits
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Image8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Photograph:
    """A decoded file, on the grid of pixels that the file stores."""

    picture: Image.Image
    """[H, W] of mode RGB, not turned. Pillow's, as an array of it is a copy, and back another."""
    orientation: int
    """How EXIF says to turn it for display, 1 to 8; 1, as it is, where it says nothing valid."""
    note: str
    """What a reader of the results should know, as "first of 3 pages"; mostly empty."""
    size: tuple[int, int]
    """H, W of the file."""
    reduction: int = 1
    """How many of the file's pixels on each side make one of the picture's: 1, 2, 4 or 8."""

    @property
    def image(self) -> Image8:
        """The picture as an array [H, W, 3] uint8."""
        return np.asarray(self.picture)

    @property
    def shown(self) -> Image8:
        """The picture as viewers show it, turned by its orientation: [H, W, 3] or [W, H, 3]."""
        if self.orientation == 1:
            return self.image
        return np.asarray(self.picture.transpose(TURNED_FOR_DISPLAY[self.orientation]))


# ---- in: bytes -> photograph


def decode_image(data: bytes, max_megapixels: float = 200.0) -> Image8:
    """An encoded photograph -> image [H, W, 3] uint8 RGB: decode_photograph's image alone."""
    return decode_photograph(data, max_megapixels).image


def decode_photograph(
    data: bytes, max_megapixels: float = 200.0, enough: float = math.inf
) -> Photograph:
    """A JPEG, PNG, TIFF, BMP, WebP, GIF, PPM or DICOM file -> its first picture, 8 bits a channel.

    The content says which format it is. EXIF's orientation is reported and not applied, so that a
    mask lies on its file's own pixels. Of 16 bits the upper 8 count; floats and 32 bit integers are
    scaled by `_eight_bits`. Grey is repeated, alpha dropped, a palette looked up; embedded colour
    profiles and gamma are ignored, as in the sets that networks are trained on. A JPEG comes
    reduced where its shorter side keeps `enough` px.

    Raises RejectedImage, in one line that is the same for all files of one fault, for bytes that
    are no image, are cut off, have a side of less than 16 px or more than `max_megapixels` (both
    checked before any pixel is decoded). Nothing else is raised, whatever the bytes.
    """
    if not data:
        raise RejectedImage(Fault.EMPTY_FILE, "empty file")
    found = SIGNATURES.match(data)
    if not found or not found.lastgroup:
        raise RejectedImage(Fault.UNKNOWN_FORMAT, "not an image in a known format")
    kind = found.lastgroup
    read = {"DICOM": _read_dicom, "TIFF": _read_tiff, "PPM": _read_netpbm}.get(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of faults that are rejected here, or do no harm
        try:
            if read:
                return read(data, kind, max_megapixels)
            return _read(data, kind, max_megapixels, enough)
        except RejectedImage:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
            fault, sentence = _fault(data, kind, error)
            raise RejectedImage(fault, f"cannot be decoded: {sentence}") from error


def check_size(width: int, height: int, max_megapixels: float) -> None:
    """Raises RejectedImage for a frame of `width` x `height` px that is too small or too large."""
    if min(width, height) < SMALLEST_SIDE:
        raise RejectedImage(Fault.TOO_SMALL, f"too small: a side of less than {SMALLEST_SIDE} px")
    _check_area(width * height, max_megapixels)


def _check_area(num_pixels: int, max_megapixels: float) -> None:
    if num_pixels > max_megapixels * 1e6:
        raise RejectedImage(
            Fault.TOO_MANY_PIXELS, f"more megapixels than --max-megapixels {max_megapixels:g}"
        )


def check_scans(jpeg: bytes) -> None:
    """Walks over a JPEG's scans; ValueError where no end follows, RejectedImage for too many.

    Decoders fill up what a download left empty and say nothing; and as a progressive scan of some
    bytes visits every pixel, a small file of many could take hours.
    """
    num_scans, place = 0, 2
    while (marker := JPEG_MARKER.search(jpeg, place)) and marker[0] != b"\xff\xd9":
        num_scans += marker[0] == b"\xff\xda"
        place = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    if num_scans > MAX_SCANS:
        raise RejectedImage(Fault.TOO_MANY_SCANS, f"JPEG of more than {MAX_SCANS} scans")
    if not marker:
        raise ValueError("no end of image")


def _fault(data: bytes, kind: str, error: Exception) -> tuple[Fault, str]:
    """What is wrong with a file that raised `error`, in words that are the same for each file."""
    if isinstance(error, MemoryError):
        return Fault.TOO_MUCH_MEMORY, "needs more memory than there is"
    if "MAX_TEXT" in str(error):  # Pillow's guard against texts that unpack to gigabytes
        return Fault.OVERSIZED_METADATA, f"{kind} with an oversized text or colour profile"
    if not isinstance(error, UnidentifiedImageError):
        return Fault.DAMAGED_FILE, f"cut off or damaged {kind}"
    if kind == "TIFF" and (rare := _tiff_fault(data)):
        return Fault.UNSUPPORTED_PIXELS, rare
    return Fault.UNREADABLE_FILE, f"damaged or unsupported {kind}"


# ---- the formats that Pillow opens


def _read(data: bytes, kind: str, max_megapixels: float, enough: float) -> Photograph:
    """JPEG, PNG, BMP, WebP, GIF. This and the other readers raise whatever their decoders raise."""
    if kind == "WEBP":  # the one format for which Pillow takes memory on opening
        check_size(*_webp_size(data), max_megapixels)
    with _opened(data, kind) as picture:
        width, height = picture.size
        check_size(width, height, max_megapixels)
        reduction = 1
        if kind == "JPEG":
            check_scans(data)
            reduction = _reduce_jpeg(picture, enough)
        # in this order: PNG may have EXIF behind its pixels, and to count a GIF's frames drops them
        pixels, orientation, note = _pixels(picture), _orientation(picture), _note(picture, kind)
    return Photograph(pixels, orientation, note, (height, width), reduction)


def _reduce_jpeg(picture: ImageFile.ImageFile, enough: float) -> int:
    """Has the decoder stop its cosine transform at a half, a quarter or an eighth of the size.

    The shorter side keeps `enough` px. Returns what the picture will be reduced by.
    """
    reduction = jpeg_reduction(min(picture.size), enough)
    if reduction > 1:
        picture.draft(picture.mode, (picture.width // reduction, picture.height // reduction))
    return reduction


def jpeg_reduction(shorter_px: float, enough: float) -> int:
    """By what a JPEG is reduced so that its shorter side keeps `enough` px: 8, 4, 2 or 1."""
    return next((r for r in (8, 4, 2) if shorter_px >= enough * r), 1)


def _read_netpbm(data: bytes, kind: str, max_megapixels: float) -> Photograph:
    with _opened(data, kind) as picture:
        check_size(*picture.size, max_megapixels)
        [(codec, _, offset, parameters)] = picture.tile or []
        if codec != "ppm" or not isinstance(parameters, tuple):
            return Photograph(_pixels(picture), 1, "", (picture.height, picture.width))
        maximum = int(parameters[1])  # neither 255 nor of plain text: a minute's work for Pillow
        shape = picture.height, picture.width, len(picture.getbands())
    dtype = np.dtype(">u2" if maximum > 255 else "u1")
    samples = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)
    if maximum == FULL_RANGE:
        return Photograph(_as_colour(samples >> 8), 1, "", shape[:2])
    scaled = np.rint(np.minimum(samples, maximum) * np.float32(255 / maximum))
    return Photograph(_as_colour(scaled), 1, "", shape[:2])


def _opened(data: bytes, kind: str) -> ImageFile.ImageFile:
    Image.MAX_IMAGE_PIXELS = None  # check_size is stricter, and Pillow's own check only warns
    TiffImagePlugin.READ_LIBTIFF = True  # libtiff reads planes of 16 bits, which Pillow misreads
    picture = Image.open(io.BytesIO(data), formats=(kind,))
    assert isinstance(picture, ImageFile.ImageFile)
    return picture


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in px in the header of a WebP (RFC 9649)."""
    if data[15:16] == b"X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[15:16] == b"L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _orientation(picture: ImageFile.ImageFile) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF does not say how to turn a picture that is whole
        return 1
    return int(value) if value in range(1, 9) else 1


def _note(picture: ImageFile.ImageFile, kind: str) -> str:
    noun = "pictures" if kind == "JPEG" else "frames"
    try:
        num_frames = getattr(picture, "n_frames", 1)
    except Exception:  # a fault behind the frame that counts
        return f"first of several {noun}"
    return f"first of {num_frames} {noun}" if num_frames > 1 else ""


# ---- TIFF


def _read_tiff(data: bytes, kind: str, max_megapixels: float) -> Photograph:
    with _opened(data, kind) as picture:
        assert isinstance(picture, TiffImagePlugin.TiffImageFile)
        tags = picture.tag_v2
        stored = tags[TiffImagePlugin.IMAGELENGTH], tags[TiffImagePlugin.IMAGEWIDTH]
        check_size(*picture.size, max_megapixels)
        tile = tags.get(TiffImagePlugin.TILEWIDTH, 1) * tags.get(TiffImagePlugin.TILELENGTH, 1)
        _check_area(tile, max_megapixels)  # libtiff takes memory for a whole tile
        orientation = _orientation(picture)  # before the pixels, which Pillow turns by it
        pixels = _tiff_pixels(picture)
        if orientation in TURNED_BACK:
            pixels = pixels.transpose(TURNED_BACK[orientation])
    if (pixels.height, pixels.width) != stored:
        raise ValueError(f"{pixels.size} pixels instead of {stored[::-1]}")
    return Photograph(pixels, orientation, _tiff_note(data), stored)


def _tiff_pixels(picture: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """-> mode RGB, turned by its orientation."""
    tags = picture.tag_v2
    picture.load()
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture) >> (bits - 8)  # 12 or 16 bits
    elif picture.mode in ("I", "F"):
        values = np.asarray(picture)
        if tags.prefix == b"MM":  # libtiff gives native order, which Pillow takes for the file's
            values = values.astype(f"i{bits // 8}" if picture.mode == "I" else "f4").byteswap()
        grey = _eight_bits(values)
    else:
        return _colours(picture)
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
    return _as_colour(255 - grey if white_is_zero else grey)


def _tiff_note(data: bytes) -> str:
    num_pages = _num_pages(data)
    if num_pages == MAX_PAGES:
        return f"first of {MAX_PAGES} or more pages"
    return f"first of {num_pages} pages" if num_pages > 1 else ""


def _num_pages(data: bytes) -> int:
    """Length of a TIFF's chain of directories, MAX_PAGES at most, as far as the file has it."""
    order, big = "<>"[data[:1] == b"M"], b"+" in data[2:4]
    size, entry_bytes, place = ("Q", 20, 8) if big else ("H", 12, 4)
    for num_pages in range(MAX_PAGES):
        try:
            (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
            if not offset:
                return num_pages
            (num_entries,) = struct.unpack_from(order + size, data, offset)
        except (struct.error, OverflowError):  # beyond the file's end
            return num_pages
        place = offset + struct.calcsize(size) + entry_bytes * num_entries
    return MAX_PAGES


def _tiff_fault(data: bytes) -> str:
    """What keeps Pillow from opening a TIFF whose directory is whole; else nothing."""
    try:
        header = data[:16] if b"+" in data[2:4] else data[:8]
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        stream = io.BytesIO(data)
        order: Literal["big", "little"] = "big" if tags.prefix == b"MM" else "little"
        stream.seek(int.from_bytes(header[len(header) // 2 :], order))
        tags.load(stream)
        whole = {TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH} <= set(tags)
        is_complex = bool({5, 6} & set(tags.get(TiffImagePlugin.SAMPLEFORMAT, ())))
    except Exception:  # as damaged as it seemed
        return ""
    return ("TIFF of complex numbers" if is_complex else RARE_TIFF) if whole else ""


# ---- DICOM


def _read_dicom(data: bytes, kind: str, max_megapixels: float) -> Photograph:
    try:
        from segpipe.data.dicom import decode_dicom
    except ImportError as error:
        raise RejectedImage(
            Fault.MISSING_DICOM_EXTRA, f"{kind} needs the extra segpipe[dicom]"
        ) from error
    image, note = decode_dicom(data, max_megapixels)
    return Photograph(Image.fromarray(image), 1, note, image.shape[:2])


# ---- pixels -> 8 bits a channel


def _pixels(picture: ImageFile.ImageFile) -> Image.Image:
    """-> mode RGB."""
    picture.load()  # here, as numpy takes some errors while decoding for "this is no array"
    if picture.mode.startswith("I"):  # of a PNG, or of a PGM, which Pillow scales to 16 bits
        return _as_colour(np.asarray(picture) >> 8)
    if picture.mode == "F":
        return _as_colour(_eight_bits(np.asarray(picture)))
    return _colours(picture)


def _colours(picture: Image.Image) -> Image.Image:
    if picture.mode == "LAB":
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, f"cannot be decoded: {RARE_TIFF}")
    if picture.mode == "La":
        picture = picture.convert("LA")
    return picture.convert("RGB") if picture.mode != "RGB" else picture


def _as_colour(channels: npt.NDArray[Any]) -> Image.Image:
    """[H, W] or [H, W, 1 or 3] in 0 to 255 -> mode RGB, grey repeated."""
    channels = channels.astype(np.uint8)
    if channels.ndim == 3 and channels.shape[2] == 3:
        return Image.fromarray(channels)
    return Image.fromarray(channels.reshape(channels.shape[:2])).convert("RGB")


def _eight_bits(values: npt.NDArray[Any]) -> Image8:
    """Numbers [H, W] float32 or int of a range that no file states -> [H, W] uint8.

    Floats within 0 to 1 are multiplied by 255; else values within 0 to 255 are taken as they are,
    and values within 0 to 65535 are divided by 257. Raises RejectedImage for others.
    """
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RejectedImage(Fault.INVALID_PIXEL_VALUES, "pixel values that are not numbers")
    if low < 0 or high > FULL_RANGE:
        raise RejectedImage(Fault.INVALID_PIXEL_VALUES, f"pixel values outside 0 to {FULL_RANGE}")
    if values.dtype.kind == "f" and high <= 1:
        return np.rint(values * np.float32(255)).astype(np.uint8)
    return np.rint(values if high <= 255 else values / np.float32(257)).astype(np.uint8)


# ---- masks


def turned_by_pillow(picture: ImageFile.ImageFile) -> int:
    """The EXIF orientation by which Pillow turns a picture that is not decoded yet: a TIFF's.

    1 for all others, whose pixels come as their file stores them.
    """
    return _orientation(picture) if picture.format == "TIFF" else 1


def encode_mask(mask: Image8, orientation: int = 1) -> bytes:
    """mask [H, W] uint8 in {0, 1, 2} -> palette PNG: black, white, mid-grey.

    Written out here (PNG, third edition, sections 5, 7, 11), as Pillow takes thrice as long. With
    its photograph's EXIF `orientation` (1 to 8) it lies on the pixels that file stores, and viewers
    turn both alike.
    """
    height, width = mask.shape
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, MASK_BITS, 3, 0, 0, 0)),  # 3: a palette
        (b"PLTE", bytes(MASK_PALETTE)),
        (b"IDAT", _deflated(_packed(mask))),
        (b"IEND", b""),
    ]
    if orientation != 1:
        exif = _exif(orientation).tobytes()
        chunks.insert(2, (b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return PNG_SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)


def encode_grey(image: Image8, orientation: int = 1) -> bytes:
    """image [H, W] uint8 -> greyscale PNG, with its photograph's EXIF orientation (1 to 8)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1, exif=_exif(orientation))
    return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    if orientation != 1:  # which is what a file without any means
        exif[ExifTags.Base.Orientation] = orientation
    return exif


def _packed(mask: Image8) -> Image8:
    """mask [H, W] -> [H, 1 + W/4 rounded up] uint8: no filter, then four pixels a byte."""
    if mask.shape[1] % 4:
        mask = np.pad(mask, ((0, 0), (0, -mask.shape[1] % 4)))
    fours = np.ascontiguousarray(mask).view("<u4")
    rows = np.zeros((len(fours), 1 + fours.shape[1]), np.uint8)
    rows[:, 1:] = fours * FOUR_TO_TOP >> 24
    return rows


def _deflated(rows: Image8) -> bytes:
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)  # zlib knows no faster, and here no smaller
    return packer.compress(rows.data) + packer.flush()


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(body, zlib.crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
