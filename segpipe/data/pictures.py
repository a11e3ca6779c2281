"""The formats that Pillow opens -> photograph: JPEG, PNG, BMP, WebP, GIF, netpbm, and newer ones."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile, TiffImagePlugin

from segpipe.data import depth
from segpipe.data.headers import check_scans, jpeg_2000_header, png_depth, webp_size
from segpipe.data.photograph import Photograph, check_size, joined
from segpipe.errors import Fault, RejectedImage

RARE_COLOURS = "pixels of a kind that is not read"  # L*a*b*
MAX_COMPONENTS = 4  # of JPEG 2000: colours and alpha


def read_picture(
    data: bytes, kind: str, max_megapixels: float, enough: float = math.inf
) -> Photograph:
    """Whatever its decoder raises is raised, where it is not RejectedImage."""
    if kind == "WEBP":  # the one format for which Pillow takes memory on opening
        check_size(*webp_size(data), max_megapixels)
    with opened(data, kind) as picture:
        width, height = picture.size
        check_size(width, height, max_megapixels)
        reduction = 1
        if kind == "JPEG":
            check_scans(data)
            reduction = _reduce_jpeg(picture, enough)
        deep = _is_deep(data, kind, (width, height))
        # in this order: PNG may have EXIF behind its pixels, and to count a GIF's frames drops them
        pixels, depth_note = _pixels(picture, data, deep)
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
    try:
        import pi_heif
    except ImportError as error:
        raise RejectedImage(Fault.MISSING_EXTRA, "HEIF needs the extra segpipe[heic]") from error
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)


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


def _note(picture: ImageFile.ImageFile, kind: str) -> str:
    noun = "pictures" if kind in ("JPEG", "HEIF") else "frames"
    try:
        num_frames = getattr(picture, "n_frames", 1)
    except Exception:  # a fault behind the frame that counts
        return f"first of several {noun}"
    return f"first of {num_frames} {noun}" if num_frames > 1 else ""


# ---- pixels


def _is_deep(data: bytes, kind: str, size: tuple[int, int]) -> bool:
    """Whether samples have 16 bits, of which not all may be used."""
    if kind == "JPEG2000":
        header = jpeg_2000_header(data)
        if header[:2] != size:
            raise ValueError(f"{header[:2]} pixels in a file of {size}")
        if header.components > MAX_COMPONENTS:
            raise ValueError(f"{header.components} components")
        return header.bits == 16  # fewer are all used
    return kind == "PNG" and png_depth(data)[0] == 16


def _pixels(picture: ImageFile.ImageFile, data: bytes, deep: bool) -> tuple[Image.Image, str]:
    """-> mode RGB, and a note."""
    picture.load()  # here, as numpy takes some errors while decoding for "this is no array"
    if picture.mode == "F":
        eight, note = depth.from_numbers(np.asarray(picture))
        return depth.as_colour(eight), note
    grey = picture.mode.startswith("I")
    if not deep:
        return (depth.as_colour(np.asarray(picture) >> 8) if grey else colours(picture)), ""
    samples = np.asarray(picture).astype(np.uint16, copy=False) if grey else None
    highest = depth.highest_of(picture) if samples is None else int(samples.max())
    stated = depth.stated_by_png(highest, png_depth(data)[1]) if picture.format == "PNG" else 0
    if samples is None:
        return depth.refined(colours(picture), data, stated)
    eight, note = depth.upper_eight(samples, stated)
    return depth.as_colour(eight), note


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
        maximum = int(parameters[-1]) if isinstance(parameters, tuple) else 0
        if codec != "ppm":  # of 255 or grey of 65535, which are stored as they are, or plain text
            deep = maximum == depth.FULL_RANGE or (not maximum and picture.mode.startswith("I"))
            pixels, note = _pixels(picture, data, deep)
            return Photograph(pixels, 1, note, stored)
        shape = *stored, len(picture.getbands())
    samples = _netpbm_samples(data, offset, shape, maximum)  # a minute's work for Pillow
    if maximum == depth.FULL_RANGE:
        eight, note = depth.upper_eight(samples)
        return Photograph(depth.as_colour(eight), 1, note, stored)
    scaled = np.rint(np.minimum(samples, maximum) * np.float32(255 / maximum))
    return Photograph(depth.as_colour(scaled), 1, "", stored)


def _netpbm_samples(
    data: bytes, offset: int, shape: tuple[int, ...], maximum: int
) -> npt.NDArray[Any]:
    dtype = np.dtype(">u2" if maximum > 255 else "u1")
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)
