"""Centre lines: their segments in path order, lines without spurs, and what is read along and
across them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.lines import bordered
from segpipe.kernels.native import shaped

MOST_EDGES = 3  # for a pixel: to the right, down, and left and down; or right and down for them

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


class Segments(NamedTuple):
    """Of a line. Pixels are numbered row by row."""

    points: Indices
    """[N] pixels, one segment after the other."""
    start: Indices
    """[S] where each segment starts in points."""
    forks: Bools
    """[S, 2] whether its first and its last point are branch points."""
    closed: Bools
    """[S] whether it is a ring."""
    branch_points: Indices
    """[K] pixels, ascending."""


def trace_lines(line: npt.NDArray[np.bool_]) -> Segments:
    """line [h, w] bool -> its segments, in the order of skeleton.trace. Raises ValueError for
    another shape or dtype, or one that is not empty along its border."""
    checked = _line(line)
    most = MOST_EDGES * int(np.count_nonzero(checked))
    points, starts = np.empty(2 * most, np.int32), np.empty(most, np.int32)
    kinds, forks = np.empty((most, 3), np.uint8), np.empty(most, np.int32)
    counts = np.zeros(3, np.int32)
    native.library().trace_lines(checked, *line.shape, points, starts, kinds, forks, counts)
    num_points, num_segments, num_forks = counts
    kind = kinds[:num_segments].view(np.bool_)
    start = starts[:num_segments]
    return Segments(points[:num_points], start, kind[:, :2], kind[:, 2], forks[:num_forks])


def _line(line: Bools) -> npt.NDArray[np.uint8]:
    """A copy, of 0 and 1."""
    return bordered(shaped("line", line, line.shape, np.bool_).view(np.uint8))


def without_spurs(
    line: npt.NDArray[np.bool_], depth: npt.NDArray[np.float32], least: float, corner: float
) -> npt.NDArray[np.bool_]:
    """line [h, w] bool, depth [h, w] float32 px -> the line without branches of one free end that
    are shorter than the depth at their fork + `least`, or than `corner` times that + 1. Raises
    ValueError for another shape or dtype, or a line that is not empty along its border."""
    left = _line(line)
    checked = shaped("depth", depth, line.shape, np.float32)
    native.library().without_spurs(left, *line.shape, checked, least, corner)
    return left.view(np.bool_)


def filtered_paths(
    points: npt.NDArray[np.complex128],
    start: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    closed: Bools,
    weights: Floats,
) -> npt.NDArray[np.complex128]:
    """points [N] of paths that start and end there [S], rings or not -> the points [N] after a
    filter [2 R + 1] along each, as skeleton.filtered has them. Raises ValueError for another dtype,
    or where the paths are not one after the other in `points`."""
    num, size = len(start), len(points)
    begins = np.append(start, size)
    if begins[0] != 0 or not (last == begins[1:] - 1).all() or (last < start).any():
        raise ValueError("paths: wanted one after the other")
    if len(weights) % 2 == 0:
        raise ValueError(f"weights: {weights.shape}, wanted an odd number")
    arrays = (
        shaped("points", points, (size,), np.complex128).view(np.float64),
        shaped("start", start, (num,), np.int64),
        shaped("last", last, (num,), np.int64),
        shaped("closed", closed, (num,), np.bool_).view(np.uint8),
    )
    given = shaped("weights", weights, (len(weights),), np.float64)
    found = np.empty(size, np.complex128)
    reach = len(weights) // 2
    native.library().filtered_paths(*arrays, num, given, reach, found.view(np.float64))
    return found


def cover_sums(levels: npt.NDArray[np.uint8], core: int, rise: int, most: int) -> Floats:
    """levels [M, K] uint8 of K samples from a centre line outwards -> their sums [M] by trapezoids,
    as calibre.py counts a vessel's, NaN where it has it. Raises ValueError for another shape or
    dtype, or profiles of no more than `core` samples."""
    if levels.ndim != 2 or not 0 < core < levels.shape[1]:
        raise ValueError(f"levels: {levels.shape}, wanted [M, more than {core}]")
    sums = np.empty(len(levels))
    given = shaped("levels", levels, levels.shape, np.uint8)
    native.library().cover_sums(given, *levels.shape, core, rise, most, sums)
    return sums
