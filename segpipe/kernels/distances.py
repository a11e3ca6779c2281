"""Distances of pixels: how deep they lie in a vessel, and which marked one is nearest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.lines import bordered
from segpipe.kernels.native import shaped

MARGIN = 2  # px of border that the distances look beyond
MOST_PX = 1 << 13  # of height and width together: distances are counted in 65536ths of a px


def vessel_depth(vessel: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """vessel [h, w] uint8, 0 or 1 -> px to the nearest background pixel [h, w] float32: OpenCV's
    `distanceTransform` with DIST_L2 and 5x5. Raises ValueError for another shape or dtype, or one
    that is not empty along MARGIN px of its border."""
    depth = np.zeros(vessel.shape, np.float32)
    native.library().vessel_depth(bordered(vessel, MARGIN), *vessel.shape, depth)
    return depth


def nearest_labels(label: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """label [h, w] int32, 0 where there is none -> of each pixel that of the nearest that has one:
    that which OpenCV's `distanceTransformWithLabels` finds. Raises ValueError for another shape or
    dtype, or one of more than MOST_PX."""
    if label.ndim != 2 or sum(label.shape) > MOST_PX:
        raise ValueError(f"label: {label.shape}, wanted [h, w] of at most {MOST_PX} px together")
    found = shaped("label", label, label.shape, np.int32).copy()
    native.library().nearest_labels(found, *label.shape)
    return found
