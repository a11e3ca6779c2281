"""TIFF -> photograph: which of its pages, and what pixels of any kind mean."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TILELENGTH,
    TILEWIDTH,
    ImageFileDirectory_v2,
    TiffImageFile,
)

from segpipe.data import depth
from segpipe.data.photograph import TURNED_BACK, Photograph, check_area, check_size, joined
from segpipe.data.pictures import colours, opened, orientation_of
from segpipe.errors import Fault, RejectedImage

MAX_PAGES = 1000  # that are counted: the chain of pages may be a loop
MAX_SAMPLE_VALUE, ORIENTATION = 281, 274  # tags
SUBFILE_TYPES: dict[
    int, Callable[[int], bool]
] = {  # tags that come first in a directory -> whether this value marks no photograph
    254: lambda bits: bool(bits & 0b101),  # NewSubfileType: a reduced copy, a transparency mask
    255: lambda number: number == 2,  # SubfileType, which it replaces: a reduced copy
}
RGB = 2  # PhotometricInterpretation
FLOAT, COMPLEX_INTEGER, COMPLEX = 3, 5, 6  # SampleFormat
SHORT = 3  # the type of a tag of 16 bits
APART = 2  # PlanarConfiguration: a plane for each colour, which OpenCV 5.0.0 mixes up
RARE = "TIFF with pixels of a kind that is not read"  # 64 bits, L*a*b*
READ_COMPRESSIONS = set(TiffImagePlugin.COMPRESSION_INFO) - {50001}  # WebP: no wheel has it
COMPRESSIONS = {  # that others write -> what is said of them
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34887: "LERC",
    34892: "lossy JPEG",
    34933: "PNG",
    50001: "WebP",
}


def read_tiff(data: bytes, kind: str, max_megapixels: float) -> Photograph:
    """Raises RejectedImage, and whatever Pillow does where the file is damaged."""
    if data.startswith(b"MM\0+"):
        raise RejectedImage(
            Fault.UNSUPPORTED_PIXELS, "TIFF in a layout that is not read: big-endian BigTIFF"
        )
    data, page_note = _photographs_page(data)
    tags = _directory(data)
    if tags is not None:
        _check_kind(tags)
        if _is_float_rgb(tags):
            return _float_rgb(data, tags, page_note, max_megapixels)
    try:
        picture = opened(data, kind)
    except UnidentifiedImageError:
        if tags is not None:  # whole, but of pixels that Pillow does not know
            raise RejectedImage(Fault.UNSUPPORTED_PIXELS, f"cannot be decoded: {RARE}") from None
        raise
    with picture:
        assert isinstance(picture, TiffImageFile)
        tags = picture.tag_v2
        stored = _check_sizes(tags, max_megapixels)
        check_size(*picture.size, max_megapixels)
        orientation = orientation_of(picture)  # before the pixels, which Pillow turns by it
        pixels, note = _pixels(picture, data)
    return _photograph(pixels, orientation, joined(page_note, note), stored)


def _photograph(
    pixels: Image.Image, orientation: int, note: str, stored: tuple[int, int]
) -> Photograph:
    """`pixels` turned by `orientation`, as Pillow and OpenCV give them -> as they are stored."""
    if orientation in TURNED_BACK:
        pixels = pixels.transpose(TURNED_BACK[orientation])
    if (pixels.height, pixels.width) != stored:
        raise ValueError(f"{pixels.size} pixels instead of {stored[::-1]}")
    return Photograph(pixels, orientation, note, stored)


def _check_sizes(tags: ImageFileDirectory_v2, max_megapixels: float) -> tuple[int, int]:
    """-> H, W as stored."""
    height, width = tags[IMAGELENGTH], tags[IMAGEWIDTH]
    check_size(width, height, max_megapixels)
    # libtiff takes memory for a whole tile
    check_area(tags.get(TILEWIDTH, 1) * tags.get(TILELENGTH, 1), max_megapixels)
    return height, width


def _check_kind(tags: ImageFileDirectory_v2) -> None:
    """Raises RejectedImage for a page that is whole and yet none that is read."""
    if {COMPLEX_INTEGER, COMPLEX} & set(tags.get(SAMPLEFORMAT, ())):
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "cannot be decoded: TIFF of complex numbers")
    compression = tags.get(COMPRESSION, 1)
    if compression not in READ_COMPRESSIONS:
        name = COMPRESSIONS.get(compression, f"number {compression}")
        raise RejectedImage(
            Fault.UNSUPPORTED_PIXELS, f"TIFF in a compression that is not read: {name}"
        )


# ---- pixels


def _pixels(picture: TiffImageFile, data: bytes) -> tuple[Image.Image, str]:
    """-> mode RGB, turned by its orientation, and a note."""
    tags = picture.tag_v2
    picture.load()
    bits, stated = tags.get(BITSPERSAMPLE, (1,))[0], _stated(tags)
    if picture.mode.startswith("I;16"):
        samples = np.asarray(picture)
        grey, note = (
            depth.upper_eight(samples, stated) if bits == 16 else (samples >> (bits - 8), "")
        )
    elif picture.mode in ("I", "F"):
        values = np.asarray(picture)
        if tags.prefix == b"MM":  # libtiff gives native order, which Pillow takes for the file's
            values = values.astype(f"i{bits // 8}" if picture.mode == "I" else "f4").byteswap()
        grey, note = depth.from_numbers(values)
    elif bits == 16 and tags.get(PHOTOMETRIC_INTERPRETATION) == RGB:
        return depth.refined(colours(picture), data, stated)
    else:
        return colours(picture), ""
    white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION, 0) == 0
    return depth.as_colour(255 - grey if white_is_zero else grey), note


def _stated(tags: ImageFileDirectory_v2) -> int:
    """The largest MaxSampleValue, 0 where there is none."""
    with suppress(TypeError, ValueError):
        values = tags.get(MAX_SAMPLE_VALUE, 0)
        return max(map(int, values)) if isinstance(values, tuple) else int(values)
    return 0


def _is_float_rgb(tags: ImageFileDirectory_v2) -> bool:
    return (
        tags.get(PHOTOMETRIC_INTERPRETATION) == RGB
        and set(tags.get(SAMPLEFORMAT, ())) == {FLOAT}
        and tuple(tags.get(BITSPERSAMPLE, ())) in ((32,) * 3, (32,) * 4)
    )


def _float_rgb(
    data: bytes, tags: ImageFileDirectory_v2, page_note: str, max_megapixels: float
) -> Photograph:
    """As exporters of fundus cameras write it; Pillow has no such pixels."""
    stored = _check_sizes(tags, max_megapixels)
    values = None if tags.get(PLANAR_CONFIGURATION) == APART else depth.wide_colours(data)
    if values is None and not _is_whole(data, tags):
        raise ValueError("strips beyond the file's end")
    if values is None or values.dtype != np.float32:
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, f"cannot be decoded: {RARE}")
    eight, note = depth.from_numbers(values)
    orientation = tags.get(ORIENTATION, 1)
    orientation = orientation if orientation in TURNED_BACK else 1
    return _photograph(depth.as_colour(eight), orientation, joined(page_note, note), stored)


def _is_whole(data: bytes, tags: ImageFileDirectory_v2) -> bool:
    """Whether all strips or tiles lie within the file."""
    pairs = ((273, 279), (324, 325))  # offsets and byte counts of strips, of tiles
    ends = [
        offset + count
        for offsets, counts in pairs
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
    ]
    return bool(ends) and max(ends) <= len(data)


# ---- pages


class _Page(NamedTuple):
    """A directory of a TIFF."""

    offset: int
    is_photograph: bool
    """Whether it is marked neither as a reduced copy nor as a mask."""


def _photographs_page(data: bytes) -> tuple[bytes, str]:
    """The file with the first page in front that is no thumbnail, and a note on the others.

    Reduced copies of that page, as pyramids have them, are no other pictures.
    """
    pages = list(_pages(data))
    number = next((n for n, page in enumerate(pages) if page.is_photograph), 0)
    if number:
        note = f"page {number + 1} of {len(pages)}: those before it are marked as reduced"
        return _fronted(data, pages[number].offset), note
    if len(pages) == MAX_PAGES:
        return data, f"first of {MAX_PAGES} or more pages"
    num_pages = sum(page.is_photograph for page in pages) or len(pages)
    return data, f"first of {num_pages} pages" if num_pages > 1 else ""


def _pages(data: bytes) -> Iterator[_Page]:
    """The chain of directories, MAX_PAGES at most, as far as the file has it."""
    order, big = "<>"[data[:1] == b"M"], b"+" in data[2:4]
    word, count, entry_bytes, place = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    word_bytes = struct.calcsize(word)
    with suppress(struct.error, OverflowError):  # beyond the file's end
        for _ in range(MAX_PAGES):
            (offset,) = struct.unpack_from(order + word, data, place)
            if not offset:
                return
            (num_entries,) = struct.unpack_from(order + count, data, offset)
            first = offset + struct.calcsize(count)
            marked = False
            for n in range(min(num_entries, len(SUBFILE_TYPES))):
                entry = first + entry_bytes * n
                tag, kind = struct.unpack_from(order + "HH", data, entry)
                value = order + ("H" if kind == SHORT else "I")
                (number,) = struct.unpack_from(value, data, entry + entry_bytes - word_bytes)
                marked |= tag in SUBFILE_TYPES and SUBFILE_TYPES[tag](number)
            yield _Page(offset, not marked)
            place = first + entry_bytes * num_entries


def _fronted(data: bytes, offset: int) -> bytes:
    """The same file, whose header names the directory at `offset` as its first."""
    order, big = "<>"[data[:1] == b"M"], b"+" in data[2:4]
    place, word = (8, "Q") if big else (4, "I")
    return data[:place] + struct.pack(order + word, offset) + data[place + struct.calcsize(word) :]


def _directory(data: bytes) -> ImageFileDirectory_v2 | None:
    """The first directory's tags; None where one of them is damaged, or it has no picture."""
    with suppress(Exception):  # as damaged as Pillow will find it
        order, big = "<>"[data[:1] == b"M"], b"+" in data[2:4]
        header = data[:16] if big else data[:8]
        (offset,) = struct.unpack(order + "Q" if big else order + "4xI", header[-8:])
        (num_entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        tags = ImageFileDirectory_v2(header)
        stream = io.BytesIO(data)
        stream.seek(offset)
        tags.load(stream)
        whole = {IMAGEWIDTH, IMAGELENGTH} <= set(tags) and len(tags) == num_entries
        return tags if whole else None
    return None
