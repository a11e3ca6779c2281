"""Score -> mask of the photograph's size."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from segpipe.kernels.build import library, pointer


def native_mask(
    score: npt.NDArray[np.float32],
    fov: npt.NDArray[np.uint8],
    geometry: npt.NDArray[np.int32],
    threshold: float,
) -> npt.NDArray[np.uint8]:
    """As canvas.native_mask, for a geometry [8] that nowhere shrinks the canvas."""
    height, width = int(geometry[0]), int(geometry[1])
    mask = np.empty((height, width), np.uint8)
    library().native_mask(
        pointer(np.ascontiguousarray(score)),
        pointer(np.ascontiguousarray(fov)),
        ctypes.c_int32(len(score)),
        pointer(np.ascontiguousarray(geometry, np.int32)),
        ctypes.c_float(threshold),
        pointer(mask),
    )
    return mask
