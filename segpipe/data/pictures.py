"""What Pillow opens -> photograph: JPEG, PNG, BMP, WebP, GIF, netpbm, JPEG 2000, AVIF, HEIF."""

from __future__ import annotations

import io
import math
import re
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile, TiffImagePlugin

from segpipe.data import depth
from segpipe.data.headers import (
    check_scans,
    heif_size,
    jpeg_2000_header,
    png_depth,
    webp_size,
)
from segpipe.data.photograph import Photograph, check_area, check_size, joined
from segpipe.errors import Fault, RejectedImage

RARE_COLOURS = "pixels of a kind that is not read"
COMMENT = re.compile(rb"#[^\r\n]*")  # of a plain netpbm
HEIF_READERS = ("pi_heif", "pillow_heif")  # one library, without an encoder and with it
MAX_COMPONENTS = 4  # of JPEG 2000: colours and alpha


def read_picture(
    data: bytes, kind: str, max_megapixels: float, enough: float = math.inf
) -> Photograph:
    """Whatever its decoder raises is raised, where it is not RejectedImage."""
    if kind == "WEBP":  # the one format for which Pillow takes memory on opening
        check_size(*webp_size(data), max_megapixels)
    if kind in ("AVIF", "HEIF"):  # whose decoders call what they find too large damaged
        width, height = heif_size(data)
        check_area(width * height, max_megapixels)
    with opened(data, kind) as picture:
        width, height = picture.size
        check_size(width, height, max_megapixels)
        reduction = 1
        if kind == "JPEG":
            check_scans(data)
            picture.decodermaxblock = len(data)  # in pieces a row amid two is begun twice
            reduction = _reduce_jpeg(picture, enough)
        bits = _depth(data, kind, (width, height))
        # in this order: PNG may have EXIF behind its pixels, and to count a GIF's frames drops them
        pixels, depth_note = _pixels(picture, data, bits)
        orientation, note = orientation_of(picture), _note(picture, kind)
    return Photograph(pixels, orientation, joined(note, depth_note), (height, width), reduction)


def opened(data: bytes, kind: str) -> ImageFile.ImageFile:
    """A file of which Pillow knows the header; its pixels are still to be decoded."""
    Image.MAX_IMAGE_PIXELS = None  # check_size is stricter, and Pillow's own check only warns
    TiffImagePlugin.READ_LIBTIFF = True  # libtiff reads planes of 16 bits, which Pillow misreads
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each maps memory, and the cores are the workers'
    if kind == "HEIF":
        _register_heif()
    picture = Image.open(io.BytesIO(data), formats=(kind,))
    assert isinstance(picture, ImageFile.ImageFile)
    return picture


def _register_heif() -> None:
    for name in HEIF_READERS:
        try:
            reader = import_module(name)
        except ImportError:
            continue
        reader.register_heif_opener(thumbnails=False, decode_threads=1)
        return
    raise RejectedImage(Fault.MISSING_EXTRA, "HEIF needs the extra segpipe[heic]")


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


def orientation_of(picture: ImageFile.ImageFile) -> int:
    """EXIF's, 1 to 8."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF does not say how to turn a picture that is whole
        return 1
    return int(value) if value in range(1, 9) else 1


def turned_by_pillow(picture: ImageFile.ImageFile) -> int:
    """The EXIF orientation by which Pillow turns a picture that is not decoded yet: a TIFF's.

    1 for all others, whose pixels come as their file stores them.
    """
    return orientation_of(picture) if picture.format == "TIFF" else 1


def _note(picture: ImageFile.ImageFile, kind: str) -> str:
    noun = "pictures" if kind in ("JPEG", "HEIF") else "frames"
    try:
        num_frames = getattr(picture, "n_frames", 1)
    except Exception:  # a fault behind the frame that counts
        return f"first of several {noun}"
    return f"first of {num_frames} {noun}" if num_frames > 1 else ""


# ---- pixels


def _depth(data: bytes, kind: str, size: tuple[int, int]) -> int:
    """Bits of a PNG's or JPEG 2000's samples; of others 8 are enough to say."""
    if kind == "PNG":
        return png_depth(data)[0]
    if kind != "JPEG2000":
        return 8
    header = jpeg_2000_header(data)
    if header[:2] != size:
        raise ValueError(f"{header[:2]} pixels in a file of {size}")
    if header.components > MAX_COMPONENTS:
        raise ValueError(f"{header.components} components")
    return header.bits


def _pixels(picture: ImageFile.ImageFile, data: bytes, bits: int) -> tuple[Image.Image, str]:
    """-> mode RGB, and a note. `bits` of samples are what a PNG, JPEG 2000 or netpbm has."""
    picture.load()  # here, as numpy takes some errors while decoding for "this is no array"
    if picture.mode == "F":
        eight, note = depth.from_numbers(np.asarray(picture))
        return depth.as_colour(eight), note
    if picture.mode.startswith("I"):  # which Pillow scales to 16 bits
        samples = np.asarray(picture).astype(np.uint16, copy=False)
        if bits != 16:
            return depth.as_colour(samples >> 8), ""
        eight, note = depth.upper_eight(samples, _stated(picture, data, int(samples.max())))
        return depth.as_colour(eight), note
    if bits <= 8:
        return colours(picture), ""
    if picture.format == "JPEG2000":
        return _deep_jpeg_2000(colours(picture), data, bits)
    highest = depth.highest_of(picture)
    return depth.refined(colours(picture), data, _stated(picture, data, highest))


def _stated(picture: ImageFile.ImageFile, data: bytes, highest: int) -> int:
    """The maximum that a file of 16 bits states, of which none is above `highest`; 0 for none."""
    if picture.format != "PNG":
        return 0
    return depth.stated_by_png(highest, png_depth(data)[1])


def _deep_jpeg_2000(upper: Image.Image, data: bytes, bits: int) -> tuple[Image.Image, str]:
    """Colours of more than 8 bits, by OpenCV: of Pillow's `upper` 8 bits white may be black."""
    wide = depth.wide_colours(data)
    if wide is None or not depth.agree(wide, np.asarray(upper), bits):
        raise RejectedImage(
            Fault.UNSUPPORTED_PIXELS, f"cannot be decoded: JPEG 2000 with {RARE_COLOURS}"
        )
    if bits == 16:
        eight, note = depth.upper_eight(wide)
        return depth.as_colour(eight), note
    return depth.as_colour(wide >> (bits - 8)), ""


def colours(picture: Image.Image) -> Image.Image:
    """-> mode RGB: grey repeated, alpha dropped, a palette looked up."""
    if picture.mode == "LAB":
        raise RejectedImage(
            Fault.UNSUPPORTED_PIXELS, f"cannot be decoded: {picture.format} with {RARE_COLOURS}"
        )
    if picture.mode == "La":
        picture = picture.convert("LA")
    return picture.convert("RGB") if picture.mode != "RGB" else picture


# ---- netpbm


def read_netpbm(data: bytes, kind: str, max_megapixels: float) -> Photograph:
    """PPM, PGM, PFM, binary or plain, scaled by the maximum that each states."""
    with opened(data, kind) as picture:
        check_size(*picture.size, max_megapixels)
        [(codec, _, offset, parameters)] = picture.tile or []
        stored = picture.height, picture.width
        if codec == "raw" or not isinstance(parameters, tuple):  # what Pillow keeps as it is
            pixels, note = _pixels(picture, data, 16 if picture.mode.startswith("I") else 8)
            return Photograph(pixels, 1, note, stored)
        shape, maximum = (*stored, len(picture.getbands())), int(parameters[-1])
    read = _plain_samples if codec == "ppm_plain" else _binary_samples  # a minute's work for Pillow
    samples = read(data, offset, shape, maximum)
    if maximum == depth.FULL_RANGE:
        eight, note = depth.upper_eight(samples)
        return Photograph(depth.as_colour(eight), 1, note, stored)
    scaled = np.rint(np.minimum(samples, maximum) * np.float32(255 / maximum))
    return Photograph(depth.as_colour(scaled), 1, "", stored)


def _binary_samples(
    data: bytes, offset: int, shape: tuple[int, ...], maximum: int
) -> npt.NDArray[Any]:
    dtype = np.dtype(">u2" if maximum > 255 else "u1")
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)


def _plain_samples(
    data: bytes, offset: int, shape: tuple[int, ...], maximum: int
) -> npt.NDArray[Any]:
    """Decimal numbers between white space, and comments up to their line's end."""
    text = COMMENT.sub(b"", data[offset:])
    samples = np.fromstring(text, np.int32, math.prod(shape), sep=" ").reshape(shape)
    if samples.min() < 0 or samples.max() > maximum:
        raise ValueError("a sample beyond the maximum")
    return samples.astype(np.uint16)
