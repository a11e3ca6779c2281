"""Which page of a TIFF is taken, and what of it is named as not read.

Run: pytest tests/test_tiff.py
"""

import io
import struct

import numpy as np
import pytest
import tifffile
from files import smooth, tiff, tiff_pages
from test_codecs import PIXELS, reason

from segpipe.data.codecs import decode_image, decode_photograph


@pytest.mark.parametrize(
    ("compression", "name"),
    [
        ("webp", "WebP"),
        ("jpeg2000", "JPEG 2000"),
        ("jpegxl", "JPEG XL"),
        ("jpegxr", "JPEG XR"),
        ("lerc", "LERC"),
        ("png", "PNG"),
    ],
)
def test_a_tiff_in_another_compression_is_named_and_not_called_damaged(compression, name):
    data = tiff(PIXELS, "rgb", compression=compression)
    assert reason(data) == f"TIFF in a compression that is not read: {name}"


# ---- which page of a TIFF


THUMBNAIL, WHOLE, MASK = smooth()[::2, ::2], smooth(), 255 - smooth()


@pytest.mark.parametrize(
    ("pages", "note"),
    [
        ([(THUMBNAIL, 1), (WHOLE, 0)], "page 2 of 2: those before it are marked as reduced"),
        ([(THUMBNAIL, 1), (MASK, 4), (WHOLE, 0), (MASK, 0)], "page 3 of 4: those before it are"),
        ([(WHOLE, 0), (THUMBNAIL, 1), (MASK, 4)], ""),
        ([(WHOLE, 0), (THUMBNAIL, 1), (MASK, 0)], "first of 2 pages"),
        ([(WHOLE, 1), (MASK, 1)], "first of 2 pages"),
        ([(WHOLE, 1)], ""),
        ([(WHOLE, 2)], ""),  # a page of a document
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(kind) for _, kind in value),
)
def test_the_first_page_that_is_no_thumbnail_is_taken(pages, note):
    found = decode_photograph(tiff_pages(*pages))
    np.testing.assert_array_equal(found.image, WHOLE)
    assert found.note.startswith(note)
    assert bool(found.note) == bool(note)


@pytest.mark.parametrize(("byteorder", "bigtiff"), [("<", False), (">", False), ("<", True)])
def test_a_thumbnail_is_known_in_every_layout(byteorder, bigtiff):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=byteorder, bigtiff=bigtiff) as file:
        file.write(THUMBNAIL, photometric="rgb", subfiletype=1)
        file.write(WHOLE, photometric="rgb", tile=(16, 16), compression="deflate")
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), WHOLE)


def test_the_older_mark_of_a_thumbnail_counts_too():
    """SubfileType, which NewSubfileType replaced: 2 is a reduced copy."""
    data = bytearray(tiff_pages((THUMBNAIL, 1), (WHOLE, 0)))
    place = data.index(struct.pack("<HHI", 254, 4, 1))
    struct.pack_into("<HHII", data, place, 255, 3, 1, 2)
    np.testing.assert_array_equal(decode_image(bytes(data)), WHOLE)


def test_the_page_that_is_taken_keeps_the_limit_of_megapixels():
    data = tiff_pages((THUMBNAIL, 1), (WHOLE, 0))
    assert reason(data, 0.002) == "more megapixels than --max-megapixels 0.002"


def test_a_big_endian_bigtiff_is_named():
    """Pillow 13.0.0 reads its header as that of a small one."""
    data = tiff(PIXELS, "rgb", bigtiff=True, byteorder=">")
    assert reason(data) == "TIFF in a layout that is not read: big-endian BigTIFF"
