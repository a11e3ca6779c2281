"""Score -> grey picture of the photograph's size -> what a PNG holds of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.masks import check_box
from segpipe.kernels.native import shaped

BLOCK_ROWS = 64  # that share a code: of 3,504 px they stay in a core's cache


def native_score(
    score: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    geometry: npt.NDArray[np.int32],
) -> npt.NDArray[np.uint8]:
    """As canvas.native_score, for a geometry [8] that nowhere shrinks the canvas.

    Raises ValueError for arrays of another shape or dtype, or a box that does not lie in both.
    """
    side = len(score)
    shape = check_box(geometry, side)
    levels = np.empty(shape, np.uint8)
    native.library().native_score(
        shaped("score", score, (side, side), np.float32),
        shaped("mask", mask, shape, np.uint8),
        side,
        np.ascontiguousarray(geometry),
        levels,
    )
    return levels


def packed_rows(image: npt.NDArray[np.uint8]) -> bytes:
    """image [H, W] uint8 -> the zlib stream of a PNG's IDAT: each row by Paeth's filter.

    Only runs of a byte are looked for: in a picture that was enlarged there is little else. Raises
    ValueError for another shape or dtype, or no pixel.
    """
    if image.ndim != 2 or not image.size:
        raise ValueError(f"image: {image.shape}, wanted rows of pixels")
    height, width = image.shape
    out = np.empty(2 * height * (width + 1) + 512 * (height // BLOCK_ROWS + 1) + 64, np.uint8)
    size = np.zeros(1, np.int64)
    native.library().packed_rows(
        shaped("image", image, (height, width), np.uint8), height, width, BLOCK_ROWS, out, size
    )
    return out[: int(size[0])].tobytes()
