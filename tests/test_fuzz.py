"""Damaged files become photographs or a reason, and nothing else, in bounded memory.

Run: pytest tests/test_fuzz.py
Run longer: python tests/test_fuzz.py 100000
"""

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import cv2
import files
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from segpipe.data.codecs import decode_photograph
from segpipe.data.photograph import Photograph
from segpipe.errors import RejectedImage

NUM_FILES = 2000
MAX_MEGAPIXELS = 0.05
GROWTH = 3 * 2**20  # bytes that 3000 files may add: those decoded have 12 KB each, 10 MB in all
LENGTHS = [0, 1, 15, 16, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1]

Edit = tuple[str, int, int]


# ---- files to damage


@cache
def seeds() -> dict[str, bytes]:
    """A small valid file of every format, and of the ways a format has to store pixels."""
    rows, columns = np.mgrid[:64, :64]
    colours = np.stack([3 * columns, 4 * rows, rows + columns], axis=2).astype(np.uint8)
    picture, deep = Image.fromarray(colours), colours.astype(np.uint16) * 257
    grey, paletted = picture.convert("L"), picture.quantize(100)
    exif = Image.Exif()
    exif[0x0112] = 6
    lossless = imagecodecs.jpeg8_encode(colours, lossless=True, predictor=1)
    htj2k = imagecodecs.htj2k_encode(colours, reversible=True, rgb=False)
    return {
        "jpeg": saved(picture, "JPEG", exif=exif, icc_profile=b"profile"),
        "progressive": saved(picture, "JPEG", progressive=True),
        "cmyk": saved(picture.convert("CMYK"), "JPEG"),
        "mpo": saved(picture, "MPO", others=True),
        "png": saved(picture, "PNG", exif=exif),
        "palette": saved(paletted, "PNG", transparency=3),
        "deep png": saved(Image.fromarray(deep[..., 0]), "PNG"),
        "apng": saved(picture, "PNG", others=True),
        "tiff": saved(picture, "TIFF", exif=exif),
        "lzw": saved(picture, "TIFF", compression="tiff_lzw"),
        "jpeg in tiff": saved(picture, "TIFF", compression="jpeg"),
        "fax": saved(picture.convert("1"), "TIFF", compression="group4"),
        "pages": saved(picture, "TIFF", others=True),
        "tiles": tiff(deep, photometric="rgb", tile=(16, 16), compression="deflate"),
        "planes": tiff(np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate"),
        "floats": tiff(colours[..., 0] / np.float32(255), byteorder=">"),
        "bigtiff": tiff(deep[..., 0], bigtiff=True),
        "bmp": saved(picture, "BMP"),
        "rle": rle_bmp(),
        "gif": saved(paletted, "GIF", others=True),
        "webp": saved(picture, "WEBP", exif=exif),
        "lossless webp": saved(picture, "WEBP", lossless=True),
        "moving webp": saved(picture, "WEBP", others=True),
        "ppm": saved(picture, "PPM"),
        "deep ppm": cv2.imencode(".ppm", deep)[1].tobytes(),
        "plain pgm": b"P2 64 64 255\n" + b" ".join(b"%d" % v for v in grey.tobytes()),
        "dicom": dicom(colours),
        "jpeg dicom": dicom(colours, saved(picture, "JPEG")),
        "rle dicom": dicom(colours, rle=True),
        "bare dicom": dicom(colours)[132:],
        "deflated dicom": files.dicom(colours, "RGB", DeflatedExplicitVRLittleEndian),
        "lossless dicom": files.encapsulated([lossless], "RGB", JPEGLosslessSV1, colours),
        "ls dicom": files.compressed(colours, "RGB", JPEGLSLossless, 8),
        "ht dicom": files.encapsulated([htj2k], "RGB", HTJ2KLossless, colours),
        "thumbnail first": files.tiff_pages((colours[::2, ::2], 1), (colours, 0)),
        "few bits": files.png16(deep >> 4, significant=12),
        "few bits in tiff": tiff(deep >> 4, photometric="rgb"),
        "float colours": tiff(colours.astype(np.float32), photometric="rgb", rowsperstrip=16),
        "jp2": saved(picture, "JPEG2000"),
        "tiled j2k": saved(picture, "JPEG2000", no_jp2=True, tile_size=(32, 32)),
        "deep jp2": imagecodecs.jpeg2k_encode(deep >> 4, level=0, reversible=True),
        "avif": saved(picture, "AVIF", exif=exif),
        "moving avif": saved(picture, "AVIF", others=True),
        "heic": files.heic(),
        "jxl": imagecodecs.jpegxl_encode(colours, lossless=True, usecontainer=True),
    }


def saved(picture: Image.Image, kind: str, others: bool = False, **options: object) -> bytes:
    buffer = io.BytesIO()
    if others:
        options |= {"save_all": True, "append_images": [picture.rotate(a) for a in (90, 180)]}
    picture.copy().save(buffer, kind, **options)  # as saving leaves its settings with a picture
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def rle_bmp() -> bytes:
    pixels = b"\x40\x07\0\0" * 64 + b"\0\1"
    header = struct.pack("<IiiHHIIIIII", 40, 64, 64, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    palette = bytes(range(256)) * 4
    start = 14 + len(header) + len(palette)
    front = b"BM" + struct.pack("<III", start + len(pixels), 0, start)
    return front + header + palette + pixels


def dicom(colours: np.ndarray, frame: bytes = b"", rle: bool = False) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = colours.shape
    dataset.PhotometricInterpretation = "YBR_FULL_422" if frame else "RGB"
    dataset.PlanarConfiguration = dataset.PixelRepresentation = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(JPEGBaseline8Bit if frame else ExplicitVRLittleEndian)
    dataset.PixelData = encapsulate([frame]) if frame else colours.tobytes()
    dataset["PixelData"].VR = "OB"
    if rle:
        dataset.compress(RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# ---- damage


def damaged(data: bytes, edits: list[Edit]) -> bytes:
    """Each edit is what to do, where (modulo the length) and a number for what it needs."""
    for name, where, number in edits:
        place = where % (len(data) + 1)
        data = EDITS[name](data, place, number)
    return data


def flip(data: bytes, place: int, number: int) -> bytes:
    return (
        data[:place]
        + bytes(b ^ (1 + number % 255) for b in data[place : place + 1])
        + data[place + 1 :]
    )


def cut(data: bytes, place: int, number: int) -> bytes:
    return data[:place]


def drop(data: bytes, place: int, number: int) -> bytes:
    return data[:place] + data[place + 1 + number % 100 :]


def splice(data: bytes, place: int, number: int) -> bytes:
    """Goes on with another file, from the same place on."""
    other = list(seeds().values())[number % len(seeds())]
    return data[:place] + other[place:]


def double(data: bytes, place: int, number: int) -> bytes:
    length, times = 1 + number % 64, 1 + number // 64 % 200
    return data[:place] + data[place : place + length] * times + data[place:]


def measure(data: bytes, place: int, number: int) -> bytes:
    """Writes a length that lies, of 2, 4 or 8 bytes, over what may be one."""
    number, length = divmod(number, len(LENGTHS))
    number, size = divmod(number, 3)
    value = LENGTHS[length] % 256 ** [2, 4, 8][size]
    order = "big" if number % 2 else "little"
    return data[:place] + value.to_bytes([2, 4, 8][size], order) + data[place + [2, 4, 8][size] :]


def mend(data: bytes, place: int, number: int) -> bytes:
    """Makes the check sums of a PNG right, so that the damage is seen behind them."""
    start, mended = 8, bytearray(data)
    while data.startswith(b"\x89PNG") and start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(data[start + 4 : end]))
        start = end + 4
    return bytes(mended)


EDITS = {f.__name__: f for f in (flip, cut, drop, splice, double, measure, mend)}
PLACES = st.integers(0, 300) | st.integers(0, 2**16)  # most fields that matter come first
EDIT = st.tuples(st.sampled_from(list(EDITS)), PLACES, st.integers(0, 2**20))
FILE = st.builds(
    lambda name, edits: damaged(seeds()[name], [*edits, ("mend", 0, 0)]),
    st.sampled_from(list(seeds())),
    st.lists(EDIT, min_size=1, max_size=4),
)


def photograph_or_reason(data: bytes) -> Photograph | str:
    try:
        return decode_photograph(data, MAX_MEGAPIXELS)
    except RejectedImage as rejection:
        return str(rejection)


def check(data: bytes) -> None:
    found = photograph_or_reason(data)
    if isinstance(found, str):
        assert found.isprintable()
        assert 5 < len(found) < 200
        assert not any(word in found for word in ("0x", "bytes", "object"))
        return
    height, width, channels = found.image.shape
    assert 16 * 16 <= height * width <= MAX_MEGAPIXELS * 1e6
    assert (channels, found.image.dtype) == (3, np.uint8)
    assert found.orientation in range(1, 9)
    assert found.note.isprintable()


# ---- claims


@pytest.mark.parametrize("name", seeds())
def test_each_file_is_read_while_it_is_whole(name):
    assert isinstance(photograph_or_reason(seeds()[name]), Photograph)


@settings(
    max_examples=NUM_FILES,
    derandomize=True,
    database=None,
    deadline=5000,  # ms a file, of which it takes one: a machine may be busy
    suppress_health_check=[HealthCheck.too_slow],
)
@given(FILE)
def test_a_damaged_file_is_a_photograph_or_a_reason(data):
    """Of at most the limit; one printable line; and within two seconds."""
    check(data)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
def test_memory_does_not_grow_with_the_number_of_damaged_files():
    words = [sys.executable, __file__, str(2 * NUM_FILES)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # files, of support/
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    lines = done.stdout.splitlines()
    after = [int(line) for line in lines]
    assert len(after) == 2 * NUM_FILES // 1000
    assert after[-1] - after[0] < GROWTH


def run_random(num_files: int) -> None:
    """Checks as many files, damaged at random, and prints the memory held after each thousand."""
    dice = random.Random(0)
    for num in range(1, num_files + 1):
        edits = [
            (
                dice.choice(list(EDITS)),
                dice.choice([dice.randrange(300), dice.randrange(2**16)]),
                dice.randrange(2**20),
            )
            for _ in range(dice.randint(1, 4))
        ]
        check(damaged(dice.choice(list(seeds().values())), [*edits, ("mend", 0, 0)]))
        if num % 1000 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(pages * os.sysconf("SC_PAGE_SIZE"), flush=True)


if __name__ == "__main__":
    run_random(int(sys.argv[1]))
