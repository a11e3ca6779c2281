"""Bytes -> RGB image, safely; mask -> PNG bytes."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from segpipe.errors import RejectedImage

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM")  # Pillow's names
EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "tif", "tiff"),
        *("bmp", "webp", "gif", "ppm", "pgm", "pnm"),
    )
)
MASK_PALETTE = (0, 0, 0, 255, 255, 255, 128, 128, 128)  # outside black, vessel white, retina grey
PNG_LEVEL = 1  # zlib level: a mask takes 1.1 ms and 16 KB; level 6 takes 3.5 ms for 13 KB


def decode_image(data: bytes, max_megapixels: float = 200.0) -> npt.NDArray[np.uint8]:
    """An encoded photograph -> image [H, W, 3] uint8 RGB, in the stored pixel grid.

    EXIF orientation is not applied, so that a mask lies on its file's own pixels; of an animation
    or a multi-page file the first frame counts. Raises RejectedImage for bytes that are no image,
    are cut off, or would hold more than `max_megapixels` (checked before any pixel is decoded).
    """
    if not data:
        raise RejectedImage("empty file")
    Image.MAX_IMAGE_PIXELS = None  # the check below is stricter, and Pillow's own only warns
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            megapixels = picture.width * picture.height / 1e6
            if megapixels > max_megapixels:
                raise RejectedImage(
                    f"{megapixels:.0f} megapixels, more than --max-megapixels {max_megapixels:g}"
                )
            return _as_rgb(picture)
    except RejectedImage:
        raise
    except UnidentifiedImageError as error:
        raise RejectedImage("not an image in a known format") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RejectedImage(f"cannot be decoded: {reason}") from error


def _as_rgb(picture: Image.Image) -> npt.NDArray[np.uint8]:
    if picture.mode.startswith("I"):  # 16 bits a sample, which Pillow's own conversion would clip
        grey = np.clip(np.asarray(picture).astype(np.int64) // 257, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(picture.convert("RGB"))


def decode_binary(data: bytes) -> npt.NDArray[np.bool_]:
    """An encoded black and white drawing, whatever its palette -> [H, W] bool, True where light."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return np.asarray(picture.convert("L")) > 127


def encode_mask(mask: npt.NDArray[np.uint8]) -> bytes:
    """mask [H, W] uint8 in {0, 1, 2} -> palette PNG: black, white, mid-grey."""
    picture = Image.fromarray(mask, "P")
    picture.putpalette(MASK_PALETTE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
