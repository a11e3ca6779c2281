"""Samples of any depth -> 8 bits a channel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segpipe.data.arrays import Image8
from segpipe.errors import Fault, RejectedImage

FULL_RANGE = 65535  # of 16 bits
DEPTHS = (8, 10, 12, 14, 16)  # bits: of cameras' converters, and of the programs behind them
LEVELS = 32  # of 8 bits: what has fewer may be even by chance, and is no photograph


def used_bits(samples: npt.NDArray[np.uint16], stated: int = 0) -> int:
    """How many of 16 bits are used by these samples, in a file that states a maximum of `stated`.

    Those of `stated` where it is one less than a power of two and no sample is above it. Else 8
    bits that were shifted up, or repeated, as programs make 16 of 8, are known by their lower bits.
    Else the smallest of DEPTHS that holds the largest sample; what 7 bits hold has no light.
    """
    highest = int(samples.max())
    if stated >= max(highest, 2**8 - 1) and not stated & (stated + 1):
        return stated.bit_length()
    zeros = _num_zeros(int(np.bitwise_or.reduce(samples, axis=None)))
    if 0 < zeros <= 8 and highest >> zeros <= 255 and _num_levels(samples, zeros) >= LEVELS:
        return 8 + zeros
    if not (samples % 257).any():  # each of 8 bits twice
        return 16
    return bits_of(max(highest, stated))


def bits_of(highest: int) -> int:
    """The smallest of DEPTHS that holds this value, the largest where 7 bits do."""
    if highest < 2**7:
        return DEPTHS[-1]
    return next((bits for bits in DEPTHS if highest < 2**bits), DEPTHS[-1])


def _num_zeros(value: int) -> int:
    """Of the bits below the lowest one that is set; 0 of nothing."""
    return max(0, (value & -value).bit_length() - 1)


def _num_levels(samples: npt.NDArray[np.uint16], zeros: int) -> int:
    """How many different values of 8 bits there are above so many lower bits."""
    seen = np.zeros(256, np.bool_)
    for row in samples:
        seen[row >> zeros] = True
    return int(seen.sum())


def upper_eight(samples: npt.NDArray[np.uint16], stated: int = 0) -> tuple[Image8, str]:
    """Samples of 16 bits -> the upper 8 of the bits that are used, and a note where few are.

    `stated` is the maximum that the file states, 0 for none.
    """
    bits = used_bits(samples, stated)
    note = f"16 bits of which {bits} are used" if bits < 16 else ""
    return (samples >> (bits - 8)).astype(np.uint8), note


def stated_by_png(highest: int, significant: int) -> int:
    """The maximum that a PNG's sBIT states: nothing, or more than it says, where it is not so.

    The standard has encoders scale samples up to 16 bits, and those that write sBIT do; where none
    is above what its bits can hold they were left as they came.
    """
    if not significant:
        return 0
    return 2**significant - 1 if highest < 2**significant else FULL_RANGE


def from_numbers(values: npt.NDArray[Any]) -> tuple[Image8, str]:
    """Floats or 32 bit integers of a range that no file states -> uint8 alike, and a note.

    Floats within 0 to 1 are multiplied by 255; else values within 0 to 255 are taken as they are,
    and others up to 65535 fill the bits that `bits_of` counts. Raises RejectedImage for others.
    """
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RejectedImage(Fault.INVALID_PIXEL_VALUES, "pixel values that are not numbers")
    if low < 0 or high > FULL_RANGE:
        raise RejectedImage(Fault.INVALID_PIXEL_VALUES, f"pixel values outside 0 to {FULL_RANGE}")
    if values.dtype.kind == "f" and high <= 1:
        return _scaled(values, 255), ""
    if high <= 255:
        return _scaled(values, 1), ""
    bits = bits_of(math.ceil(high))
    note = f"pixel values of {bits} bits" if bits < 16 else ""
    return _scaled(values, 255 / (2**bits - 1)), note


def _scaled(values: npt.NDArray[Any], factor: float) -> Image8:
    """values * factor, rounded, channel by channel, as a photograph of floats takes much memory."""
    scaled = np.empty(values.shape, np.uint8)
    for channel in np.ndindex(values.shape[2:]):
        scaled[..., *channel] = np.rint(values[..., *channel] * np.float32(factor))
    return scaled


def as_colour(channels: npt.NDArray[Any]) -> Image.Image:
    """[H, W] or [H, W, 1 or 3] in 0 to 255 -> mode RGB, grey repeated."""
    channels = channels.astype(np.uint8, copy=False)
    if channels.ndim == 3 and channels.shape[2] == 3:
        return Image.fromarray(channels)
    return Image.fromarray(channels.reshape(channels.shape[:2])).convert("RGB")


# ---- colours of more than 8 bits, which Pillow does not hold


def wide_colours(data: bytes) -> npt.NDArray[Any] | None:
    """A PNG, TIFF or JPEG 2000 -> [H, W, 3] RGB as OpenCV reads it, grey repeated; None where it
    cannot. A TIFF is turned by EXIF. Its size must have been checked.
    """
    import cv2  # 0.1 s, which processes that list inputs need not wait for

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or (found.ndim == 3 and found.shape[2] not in (3, 4)):
        return None
    return found[..., 2::-1] if found.ndim == 3 else np.stack([found] * 3, axis=2)


def highest_of(picture: Image.Image) -> int:
    """What the largest of 16 bits may be where Pillow kept the upper 8 of them."""
    return max(int(high) for _, high in picture.getextrema()) << 8 | 0xFF  # type: ignore[misc]


def refined(picture: Image.Image, data: bytes, stated: int = 0) -> tuple[Image.Image, str]:
    """A picture of mode RGB of which Pillow kept the upper 8 of 16 bits -> those that are used.

    `stated` is the maximum that the file states, 0 for none. The file is read again where the upper
    bits may be empty, and both decoders must agree. Raises RejectedImage where few are used and
    they do not: no mask is made of half a picture.
    """
    highest = highest_of(picture)
    if stated == FULL_RANGE or highest >= 2**15:
        return picture, ""
    wide = wide_colours(data)
    if wide is not None and agree(wide, np.asarray(picture)):
        eight, note = upper_eight(wide, stated)
        return (as_colour(eight), note) if note else (picture, "")
    if bits_of(max(highest, stated)) == 16:
        return picture, ""
    raise RejectedImage(
        Fault.UNSUPPORTED_PIXELS, "colours of 16 bits of which few are used, in a rare layout"
    )


def agree(wide: npt.NDArray[Any], upper: Image8, bits: int = 16) -> bool:
    """Whether these samples of so many bits have those upper 8, up to rounding.

    Pillow 13.0.0 rounds the white of a JPEG 2000 of more than 8 bits up to 256, which is black.
    """
    if wide.dtype != np.uint16 or wide.shape != upper.shape:
        return False
    for channel in range(upper.shape[2]):
        expected = (wide[..., channel] >> (bits - 8)).astype(np.uint8)
        apart = (upper[..., channel] - expected).view(np.int8)
        if not -1 <= apart.min() <= apart.max() <= 1:
            return False
    return True
