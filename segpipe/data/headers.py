"""What the headers of compressed pictures say, read before any decoder sees them.

A decoder takes memory for the size in the compressed data, which need not be that of the file
around it, and makes up what is missing at its end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from segpipe.errors import Fault, RejectedImage

JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # but for restarts: what ends a scan
JPEG_LS_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # there 0xFF is followed by a bit of 0
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # 0xF7: JPEG-LS (ITU-T T.87)
HEIF_SIZE = re.compile(rb"ispe\0\0\0\0(.{8})", re.DOTALL)
MAX_SCANS = 100  # of a JPEG, as libtiff has it: encoders write about 10
CODESTREAM = b"\xff\x4f\xff\x51"  # how JPEG 2000 begins: start of codestream, then its size
START_OF_TILE, END_OF_CODESTREAM = b"\xff\x90", b"\xff\xd9"


class Header(NamedTuple):
    """What compressed data say of their picture."""

    width: int
    """px"""
    height: int
    """px"""
    components: int
    bits: int
    """Of the deepest component."""
    process: int = 0
    """Of a JPEG: the marker that begins its frame, as 0xC3 of a lossless one."""


def jpeg_header(jpeg: bytes) -> Header:
    """Of a JPEG or JPEG-LS (ITU-T T.81, B.2.2). ValueError where no frame begins."""
    place = 2
    while jpeg[place : place + 1] == b"\xff":
        marker, length = struct.unpack_from(">xBH", jpeg, place)
        if marker in START_OF_FRAME:
            bits, height, width, components = struct.unpack_from(">BHHB", jpeg, place + 4)
            return Header(width, height, components, bits, marker)
        place += 1 if marker == 0xFF else 2 + length  # 0xFF: filled up
    raise ValueError("no start of frame")


def check_scans(jpeg: bytes, is_ls: bool = False) -> None:
    """Walks over the scans of a JPEG or JPEG-LS; ValueError where no end follows, RejectedImage for
    too many.

    Decoders fill up what a download left empty and say nothing, CharLS after minutes; and as a
    progressive scan of some bytes visits every pixel, a small file of many could take hours.
    """
    num_scans, place = 0, 2
    markers = JPEG_LS_MARKER if is_ls else JPEG_MARKER
    while (marker := markers.search(jpeg, place)) and marker[0] != b"\xff\xd9":
        num_scans += marker[0] == b"\xff\xda"
        place = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    if num_scans > MAX_SCANS:
        raise RejectedImage(Fault.TOO_MANY_SCANS, f"JPEG of more than {MAX_SCANS} scans")
    if not marker:
        raise ValueError("no end of image")


def jpeg_2000_header(data: bytes) -> Header:
    """Of a JPEG 2000 file or codestream (ISO 15444-1, A.5.1); ValueError where its end is missing.

    OpenJPEG gives black for tiles that are not there, where the file ends between two of them.
    """
    start, stop = _codestream(data)
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    depths = data[start + 42 : start + 42 + 3 * components : 3]
    if len(depths) < components or not components:
        raise ValueError("no components")
    _check_tiles(data, start, stop)
    bits = 1 + max(depth & 0x7F for depth in depths)
    return Header(right - left, bottom - top, components, bits)


def _codestream(data: bytes) -> tuple[int, int]:
    """Where a JPEG 2000 file's codestream starts and ends (ISO 15444-1, I.4)."""
    if data.startswith(CODESTREAM):
        return 0, len(data)
    for kind, start, stop in boxes(data):
        if kind == b"jp2c" and data.startswith(CODESTREAM, start) and stop <= len(data):
            return start, stop
    raise ValueError("no codestream")


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each box of a JPEG 2000, JPEG XL, HEIF or AVIF file, and where its content starts and
    ends (ISO 15444-1, I.4; ISO 14496-12, 4.2). Ends behind one that ends before it starts;
    struct.error where one is cut off.
    """
    start = stop = 0
    while start <= stop < len(data):
        place = stop
        length, kind = struct.unpack_from(">I4s", data, place)
        start = place + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = place + length if length else len(data)  # 0: up to the end of the file
        yield kind, start, stop


def _check_tiles(data: bytes, start: int, stop: int) -> None:
    """From one tile-part to the next (A.4.2); ValueError where no end of codestream follows."""
    place = start + 2
    while data[place : place + 2] not in (START_OF_TILE, END_OF_CODESTREAM):
        (length,) = struct.unpack_from(">H", data, place + 2)
        place += 2 + length
    while data[place : place + 2] == START_OF_TILE:
        (length,) = struct.unpack_from(">I", data, place + 6)
        if 0 < length < 14:
            raise ValueError("a tile-part shorter than its header")
        if not length:  # up to the end
            place = data.rfind(END_OF_CODESTREAM, place, stop)
            break
        place += length
    if place < 0 or place + 2 > stop or data[place : place + 2] != END_OF_CODESTREAM:
        raise ValueError("no end of codestream")


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in px in the header of a WebP (RFC 9649)."""
    if data[15:16] == b"X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[15:16] == b"L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def heif_size(data: bytes) -> tuple[int, int]:
    """Width and height in px of the largest picture in a HEIF or AVIF (ISO 23008-12, 6.5.3)."""
    meta = b""
    with suppress(struct.error):  # cut off before it: the decoder says so
        meta = next((data[start:stop] for kind, start, stop in boxes(data) if kind == b"meta"), b"")
    sizes = [struct.unpack(">II", found[1]) for found in HEIF_SIZE.finditer(meta)]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def png_depth(data: bytes) -> tuple[int, int]:
    """Bits of a PNG's samples, and how many of them its sBIT says are significant, 0 for nothing.

    PNG, third edition, 11.2.1 and 11.3.2.4.
    """
    return data[24], max(_png_chunk(data, b"sBIT"), default=0)


def png_palette(data: bytes) -> bytes:
    """Red, green and blue of each colour in a PNG's palette; nothing without one."""
    return _png_chunk(data, b"PLTE")


def _png_chunk(data: bytes, wanted: bytes) -> bytes:
    """The last chunk of this kind before the pixels (PNG, third edition, 5.3)."""
    found, place = b"", 8
    while (kind := data[place + 4 : place + 8]) not in (b"IDAT", b"IEND", b""):
        (length,) = struct.unpack_from(">I", data, place)
        if kind == wanted:
            found = data[place + 8 : place + 8 + length]
        place += 12 + length
    return found
