"""Score -> grey picture of the photograph's size -> what a PNG holds of it."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from segpipe.kernels.build import library, pointer

BLOCK_ROWS = 64  # that share a code: of 3,504 px they stay in a core's cache


def native_score(
    score: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    geometry: npt.NDArray[np.int32],
) -> npt.NDArray[np.uint8]:
    """As canvas.native_score, for a geometry [8] that nowhere shrinks the canvas."""
    height, width, _, _, box_height, box_width, *_ = map(int, geometry)
    if mask.shape != (height, width):
        raise ValueError(f"mask {mask.shape}: wanted {(height, width)}, as the geometry says")
    most = box_height + box_width
    levels = np.empty((height, width), np.uint8)
    library().native_score(
        pointer(np.ascontiguousarray(score)),
        pointer(np.ascontiguousarray(mask)),
        ctypes.c_int32(len(score)),
        pointer(np.ascontiguousarray(geometry, np.int32)),
        pointer(np.empty((2, most), np.int32)),
        pointer(np.empty((2, most), np.float64)),
        pointer(np.empty((2, box_width), np.float32)),
        pointer(levels),
    )
    return levels


def packed_rows(image: npt.NDArray[np.uint8]) -> bytes:
    """image [H, W] uint8 -> the zlib stream of a PNG's IDAT: each row by Paeth's filter.

    Only runs of a byte are looked for: in a picture that was enlarged there is little else.
    """
    height, width = image.shape
    if not image.size:
        raise ValueError(f"image {image.shape}: wanted one with pixels")
    pitch = width + 1
    out = np.empty(2 * height * pitch + 512 * (height // BLOCK_ROWS + 1) + 64, np.uint8)
    size = library().packed_rows(
        pointer(np.ascontiguousarray(image)),
        ctypes.c_int32(height),
        ctypes.c_int32(width),
        ctypes.c_int32(BLOCK_ROWS),
        pointer(np.empty((BLOCK_ROWS, pitch), np.uint8)),
        pointer(np.empty((BLOCK_ROWS, pitch), np.uint16)),
        pointer(out),
    )
    return out[:size].tobytes()
