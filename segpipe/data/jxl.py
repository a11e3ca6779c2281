"""JPEG XL -> photograph: the extra segpipe[jxl]. Imported for files that say so alone."""

from __future__ import annotations

import numpy as np
from imagecodecs import jpegxl_decode

from segpipe.data import depth
from segpipe.data.headers import boxes
from segpipe.data.photograph import Photograph, check_size

RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width : height, from 1
LENGTHS = (9, 13, 18, 30)  # bits of a side, by its first two


def read_jxl(data: bytes, max_megapixels: float) -> Photograph:
    """As its viewers show it: its orientation is a part of decoding, and no tag beside it."""
    codestream = _codestream(data)
    check_size(*jxl_size(codestream), max_megapixels)
    values = np.asarray(jpegxl_decode(data, index=0, numthreads=1))
    if values.ndim == 3 and values.shape[2] not in (1, 3):  # alpha
        values = values[..., : 1 if values.shape[2] == 2 else 3]
    if values.dtype == np.uint8:
        eight, note = values, ""
    elif values.dtype == np.uint16:
        eight, note = depth.upper_eight(values)
    else:
        eight, note = depth.from_numbers(values)
    picture = depth.as_colour(eight)
    return Photograph(picture, 1, note, (picture.height, picture.width))


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, out of its container (ISO 18181-2)."""
    if data.startswith(b"\xff\x0a"):
        return data[:16]
    for kind, start, _ in boxes(data):
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0  # its number among the parts
            return data[start : start + 16]
    raise ValueError("no codestream")


def jxl_size(codestream: bytes) -> tuple[int, int]:
    """Width and height in px of a JPEG XL codestream (ISO 18181-1, SizeHeader)."""
    bits, place = int.from_bytes(codestream, "little"), 16  # behind its signature

    def take(num: int) -> int:
        nonlocal place
        place += num
        if place > 8 * len(codestream):
            raise ValueError("no size")
        return bits >> place - num & (1 << num) - 1

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take(LENGTHS[take(2)])

    small = take(1)
    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    over, under = RATIOS[ratio - 1]
    return height * over // under, height
