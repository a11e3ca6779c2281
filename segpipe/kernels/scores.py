"""Score -> grey picture of the photograph's size; picture -> what a PNG holds of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.masks import drawn
from segpipe.kernels.native import shaped

BLOCK_ROWS = 64  # of 8 bits that share a code: of 3,504 px they stay in a core's cache


def native_score(
    score: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    geometry: npt.NDArray[np.int32],
) -> npt.NDArray[np.uint8]:
    """As canvas.native_score, for a geometry [8] that nowhere shrinks the canvas.

    Raises ValueError for arrays of another shape or dtype, or a box that does not lie in both.
    """
    checked = shaped("score", score, (len(score),) * 2, np.float32)
    return drawn(native.library().native_score, checked, mask, geometry)


def packed_rows(image: npt.NDArray[np.uint8], bits: int = 8) -> bytes:
    """image [H, W] uint8 -> the zlib stream of a PNG's IDAT, of 8, 4 or 2 bits a pixel.

    Rows of 8 bits by Paeth's filter, others as what they differ by from the one above. Only runs of
    a byte are looked for: in a picture that was enlarged there is little else. Raises ValueError
    for another shape or dtype, no pixel, or another number of bits.
    """
    if image.ndim != 2 or not image.size:
        raise ValueError(f"image: {image.shape}, wanted rows of pixels")
    if bits not in (8, 4, 2):
        raise ValueError(f"bits: {bits}, wanted 8, 4 or 2")
    height, width = image.shape
    pitch, block = 1 + -(-width * bits // 8), BLOCK_ROWS * 8 // bits
    out = np.empty(2 * height * pitch + 512 * (height // block + 1) + 64, np.uint8)
    size = np.zeros(1, np.int64)
    pixels = shaped("image", image, (height, width), np.uint8)
    native.library().packed_rows(pixels, height, width, bits, block, out, size)
    return out[: int(size[0])].tobytes()
