"""Vessels: their parts of some size, their centre lines, and the boxes that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped

MOST_PIXELS = 2**31 - 1


def thin_lines(vessel: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """As skeleton.thin. Raises ValueError for another shape or dtype, or one that is not empty
    along its border."""
    checked = bordered(vessel)
    line = np.empty(vessel.shape, np.bool_)
    native.library().thin_lines(checked, *vessel.shape, line.view(np.uint8))
    return line


def without_specks(
    vessel: npt.NDArray[np.uint8], least: float
) -> tuple[npt.NDArray[np.uint8], int]:
    """vessel [h, w] uint8, 0 or 1 -> its 8-connected components of `least` pixels or more [h, w]
    uint8, and their number. Raises ValueError for another shape or dtype."""
    large, stay = plane(vessel), np.zeros(1, np.int32)
    native.library().without_specks(large, *vessel.shape, least, stay)
    return large, int(stay[0])


def long_parts(vessel: npt.NDArray[np.uint8], least: int) -> tuple[int, int]:
    """vessel [h, w] uint8, 0 or 1 -> the number of its 8-connected components, and how many pixels
    are of those that are `least` px high or wide. Raises ValueError for another shape or dtype."""
    counts = np.zeros(2, np.int32)
    native.library().long_parts(plane(vessel), *vessel.shape, least, counts)
    return int(counts[0]), int(counts[1])


def box_counts(
    cells: npt.NDArray[np.uint8], sides: Sequence[int], offsets: int
) -> npt.NDArray[np.float64]:
    """As fractal.box_counts. Raises ValueError for another shape or dtype, or no side."""
    if min(sides, default=0) < 1 or offsets < 1:
        raise ValueError(f"sides {sides}, offsets {offsets}: wanted whole ones above 0")
    means = np.empty(len(sides))
    of = np.array(sides, np.int32)
    native.library().box_counts(plane(cells), *cells.shape, of, len(sides), offsets, means)
    return means


def bordered(vessel: npt.NDArray[np.uint8], px: int = 1) -> npt.NDArray[np.uint8]:
    """As `plane`; raises ValueError, too, for one that is not empty along so many px of its
    border."""
    checked = plane(vessel)
    edges = checked[:px], checked[-px:], checked[:, :px], checked[:, -px:]
    if any(edge.any() for edge in edges):
        raise ValueError("vessel: wanted one that is empty along its border")
    return checked


def plane(vessel: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A C-contiguous copy of vessel [h, w] uint8, of 0 and 1. Raises ValueError for another shape
    or dtype."""
    if vessel.ndim != 2 or vessel.size > MOST_PIXELS:
        raise ValueError(f"vessel: {vessel.shape}, wanted [h, w]")
    is_vessel: npt.NDArray[np.bool_] = shaped("vessel", vessel, vessel.shape, np.uint8) != 0
    return is_vessel.view(np.uint8)  # np.minimum with 1 takes ten times as long
