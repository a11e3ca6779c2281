"""Score -> mask of the photograph's size; kinds of the canvas -> those of the mask's vessels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped


def native_mask(
    score: npt.NDArray[np.float32],
    fov: npt.NDArray[np.uint8],
    geometry: npt.NDArray[np.int32],
    threshold: float,
) -> npt.NDArray[np.uint8]:
    """As canvas.native_mask, for a geometry [8].

    Raises ValueError for arrays of another shape or dtype, or a box that does not lie in both.
    """
    side = len(score)
    mask = np.empty(check_box(geometry, side), np.uint8)
    native.library().native_mask(
        shaped("score", score, (side, side), np.float32),
        shaped("fov", fov, (side, side), np.uint8),
        side,
        np.ascontiguousarray(geometry),
        threshold,
        mask,
    )
    return mask


def native_kinds(
    plane: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], geometry: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """As structures.native_kinds, for a geometry [8].

    Raises ValueError for arrays of another shape or dtype, or a box that does not lie in both.
    """
    checked = shaped("plane", plane, (len(plane),) * 2, np.uint8)
    return drawn(native.library().native_kinds, checked, mask, geometry)


def drawn(
    draw: Callable[..., Any],
    canvas: npt.NDArray[Any],
    mask: npt.NDArray[np.uint8],
    geometry: npt.NDArray[np.int32],
) -> npt.NDArray[np.uint8]:
    """What the library draws of the size of mask [H, W], for a geometry [8], from a plane [S, S]
    of the canvas. Raises ValueError as native_kinds."""
    side = len(canvas)
    shape = check_box(geometry, side)
    picture = np.empty(shape, np.uint8)
    draw(
        canvas,
        shaped("mask", mask, shape, np.uint8),
        side,
        np.ascontiguousarray(geometry),
        picture,
    )
    return picture


def check_box(geometry: npt.NDArray[np.int32], side: int) -> tuple[int, int]:
    """A geometry [8] and the canvas's side, px -> height and width of the photograph, px.

    Raises ValueError for another shape or dtype, or a box that does not lie in both.
    """
    numbers = shaped("geometry", geometry, (8,), np.int32).tolist()
    height, width, top, left, box_height, box_width, scaled_height, scaled_width = numbers
    inside = 0 <= top <= height - box_height and 0 <= left <= width - box_width
    if not inside or not (0 < scaled_height <= side and 0 < scaled_width <= side):
        raise ValueError(f"geometry {numbers}: its box is not in picture and canvas")
    return height, width
