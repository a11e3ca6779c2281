"""A picture enlarged as Pillow enlarges it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped

CHANNELS = 4  # most that a picture may have


def enlarged(picture: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """picture [h, w] or [h, w, C] uint8 -> [height, width] or [height, width, C], bilinear.

    Each level is that of Pillow's `resize`. Raises ValueError for another shape or dtype, or where
    a side becomes smaller.
    """
    shape = picture.shape
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or not (0 < channels <= CHANNELS and min(shape) > 0):
        raise ValueError(f"picture: {shape}, wanted [h, w] or [h, w, 1 to {CHANNELS}]")
    if height < shape[0] or width < shape[1]:
        raise ValueError(f"picture: {shape}, wanted at most [{height}, {width}]")
    large = np.empty((height, width, *shape[2:]), np.uint8)
    given = shaped("picture", picture, shape, np.uint8)
    native.library().enlarge_levels(given, *shape[:2], channels, height, width, large)
    return large
