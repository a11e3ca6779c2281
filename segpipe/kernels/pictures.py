"""A picture in another size, as Pillow and OpenCV make it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped

CHANNELS = 4  # most that a picture may have
MOST_BLOCK = 256  # px: up to there a sum is exact in float
MOST_SCALE = 2.0  # px of a picture for one of the result: beyond it Pillow is as quick

Box = tuple[float, float, float, float]


def resizes(shape: tuple[int, ...], height: int, width: int, box: Box | None = None) -> bool:
    """Whether `resized` makes a part of a picture of this shape so large, as Pillow does."""
    left, top, right, bottom = box or _whole(shape)
    near = right - left <= MOST_SCALE * width and bottom - top <= MOST_SCALE * height
    return near and _rows_first(shape, height, width)


def _rows_first(shape: tuple[int, ...], height: int, width: int) -> bool:
    """Where a height shrinks by more than twice what the width does, Pillow 13 works down the
    columns first."""
    return shape[0] - height <= max(0, 2 * (shape[1] - width))


def resized(
    picture: npt.NDArray[np.uint8],
    height: int,
    width: int,
    box: Box | None = None,
    into: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """picture [h, w] or [h, w, C] uint8 -> [height, width] or [height, width, C], bilinear.

    `box` (left, top, right, bottom, px) is what becomes the result; without it all. Each level is
    that of Pillow's `resize`. Rows of `into`, which the result is written into where it is given,
    may lie apart, and so may rows and pixels of the picture. Raises ValueError for another shape or
    dtype, a box that is not in the picture, or where `resizes` says no.
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
    other = np.empty((height, width, *shape[2:]), np.uint8) if into is None else into
    wanted = (height, width, *shape[2:])
    if other.shape != wanted or other.dtype != np.uint8 or not other[0].flags.c_contiguous:
        raise ValueError(f"into: {other.shape} {other.dtype}, wanted {wanted} uint8 in whole rows")
    edges = np.array(box, np.float32)  # as Pillow has them
    native.library().resized_levels(
        *_lying(picture, channels), edges, height, width, other, other.strides[0]
    )
    return other


def box_means(
    picture: npt.NDArray[np.uint8], height: int, width: int
) -> npt.NDArray[np.uint8] | None:
    """picture [h, w, 2 to 4] uint8 -> [height, width, as many], each pixel the mean of those whose
    centres are in its area; None where Pillow works down the columns first.

    Each level is that of Pillow's `resize` with BOX. Rows and pixels of the picture may lie apart.
    Raises ValueError for another shape or dtype, a larger result, or one of blocks of more than
    256 px.
    """
    shape = picture.shape
    if len(shape) != 3 or not 1 < shape[2] <= CHANNELS:
        raise ValueError(f"picture: {shape}, wanted [h, w, 2 to {CHANNELS}]")
    for before, after in ((shape[0], height), (shape[1], width)):
        if not 0 < after <= before < MOST_BLOCK * after:
            raise ValueError(f"[{height}, {width}] of {shape}: wanted a smaller one, but less so")
    if not _rows_first(shape, height, width):
        return None
    means = np.empty((height, width, shape[2]), np.uint8)
    native.library().box_levels(*_lying(picture, shape[2]), height, width, means)
    return means


def _lying(picture: npt.NDArray[np.uint8], channels: int) -> tuple[Any, ...]:
    """A picture, how many bytes apart its rows and its pixels lie, its height, width, channels.

    Copied where bytes of a pixel lie apart, or pixels of one byte. Raises ValueError for a dtype
    that is not uint8.
    """
    if picture.dtype != np.uint8:
        raise ValueError(f"picture: {picture.dtype}, wanted uint8")
    pixel_step, byte_step = (*picture.strides[1:], 1)[:2]
    apart = pixel_step == 1 if channels == 1 else channels <= pixel_step <= CHANNELS
    if byte_step != 1 or not apart:
        picture = np.ascontiguousarray(picture)
    return picture, *picture.strides[:2], *picture.shape[:2], channels


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
