"""A picture in another size, as Pillow and OpenCV make it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped

CHANNELS = 4  # most that a picture may have
MOST_BLOCK = 256  # px: up to there a sum is exact in float
MOST_SCALE = 2.0  # px of a picture for one of the result: beyond it Pillow is as quick

Box = tuple[float, float, float, float]


def resizes(shape: tuple[int, ...], height: int, width: int, box: Box | None = None) -> bool:
    """Whether `resized` makes a part of a picture of this shape so large, as Pillow does.

    Where a height shrinks by more than twice what the width does, Pillow 13 works down the columns
    first.
    """
    left, top, right, bottom = box or _whole(shape)
    near = right - left <= MOST_SCALE * width and bottom - top <= MOST_SCALE * height
    return near and shape[0] - height <= max(0, 2 * (shape[1] - width))


def resized(
    picture: npt.NDArray[np.uint8], height: int, width: int, box: Box | None = None
) -> npt.NDArray[np.uint8]:
    """picture [h, w] or [h, w, C] uint8 -> [height, width] or [height, width, C], bilinear.

    `box` (left, top, right, bottom, px) is what becomes the result; without it all. Each level is
    that of Pillow's `resize`. Raises ValueError for another shape or dtype, a box that is not in
    the picture, or where `resizes` says no.
    """
    shape = picture.shape
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or not (0 < channels <= CHANNELS and min(shape) > 0):
        raise ValueError(f"picture: {shape}, wanted [h, w] or [h, w, 1 to {CHANNELS}]")
    left, top, right, bottom = box = box or _whole(shape)
    if not (0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]):
        raise ValueError(f"box {box}: wanted one in a picture of {shape}")
    if not resizes(shape, height, width, box):
        raise ValueError(f"[{height}, {width}] of box {box} in {shape}: wanted less of a change")
    other = np.empty((height, width, *shape[2:]), np.uint8)
    given = shaped("picture", picture, shape, np.uint8)
    edges = np.array(box, np.float32)  # as Pillow has them
    native.library().resized_levels(given, *shape[:2], channels, edges, height, width, other)
    return other


def averaged(
    picture: npt.NDArray[np.uint8], height: int, width: int, channel: int = 0
) -> npt.NDArray[np.uint8]:
    """picture [h, w] or [h, w, C] uint8 -> its channel [height, width], each pixel the mean of its
    area. Each level is that of OpenCV's `resize` with INTER_AREA, where a side of the picture is no
    multiple of the result's. Raises ValueError for another shape or dtype, or a larger result."""
    planes = picture if picture.ndim == 3 else picture[..., None]
    if planes.ndim != 3 or not 0 <= channel < planes.shape[2]:
        raise ValueError(f"picture: {picture.shape}, wanted [h, w] or [h, w, C] with its channel")
    if not (0 < height <= planes.shape[0] and 0 < width <= planes.shape[1]):
        raise ValueError(f"[{height}, {width}] of {picture.shape}: wanted a smaller one")
    given = shaped("picture", planes, planes.shape, np.uint8).ravel()[channel:]
    other = np.empty((height, width), np.uint8)
    native.library().averaged_levels(given, *planes.shape, height, width, other)
    return other


def block_means(picture: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """picture [h, w, C] uint8 -> [h / side, w / side, C]: means of blocks, the levels of OpenCV's
    `resize` with INTER_AREA, which rounds blocks of 2 px differently. Raises ValueError for these,
    another shape or dtype, or a height or width that is no multiple of `side`."""
    fits = picture.ndim == 3 and 2 < side < MOST_BLOCK
    if not fits or any(size % side for size in picture.shape[:2]):
        raise ValueError(f"picture: {picture.shape}, wanted [h, w, C] of blocks of {side} px")
    height, width, channels = picture.shape
    means = np.empty((height // side, width // side, channels), np.uint8)
    given = shaped("picture", picture, picture.shape, np.uint8)
    native.library().block_levels(given, *picture.shape, side, means)
    return means


def _whole(shape: tuple[int, ...]) -> Box:
    return 0.0, 0.0, float(shape[1]), float(shape[0])
