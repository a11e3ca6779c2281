"""Vessels -> their fractal dimension, by box counting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from segpipe import kernels
from segpipe.data.arrays import Image8
from segpipe.measurement.skeleton import Floats

BOXES = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # sides in cells
CELLS = 270  # across a field: boxes are from a 135th, a usual calibre, to an eighth of it
FEWEST_ACROSS = 4  # boxes over the vessels' extent
FEWEST_SIDES = 3  # of boxes, through which a line is fitted
OFFSETS = 4  # places of the grid of boxes along each axis
WIDEST = 16  # of which the vessels' extent is one: what is wider is no line, but a surface
TINY = 1e-6
ROUNDS = 10  # of the fit: five bring it to four digits


def fractal_dimension(vessel: Image8, width: float = 0.0, cell: int = 2) -> float:
    """vessel [h, w] uint8, 0 or 1, `width` px of its lines -> their box-counting dimension, from 0
    to 2: how the number of boxes that hold vessel falls with their side.

    Sides are 2 to 32 cells of `cell` px, a quarter of the vessels' extent at most. A box meets a
    line of some width where one that is larger by it meets the line alone: N boxes of a side cover
    N side^2, of which those of side + pi / 4 width - 1 px cover as much (the width adds pi / 4 of
    itself to a square's extent across a strip, over all angles; a row of pixels is a line). So the
    dimension is that of the lines, and does not rise as vessels widen.

    Over all places of the grid a line of length e meets e / side + 1 boxes on average and a square
    the square of that: the 1 is boxes that are cut by an end. So N^(1/D) - 1, and not N^(1/D), goes
    with 1 / side, and D is the number for which it does.
    NaN where the vessels' extent is below 16 cells. Both corrections are segpipe's own; plain
    box counting is high for wide lines and low for short ones.
    """
    cells = _cells(vessel, cell)
    extent = max(cv2.boundingRect(cells)[2:])
    sides = [side for side in BOXES if side * FEWEST_ACROSS <= extent]
    if len(sides) < FEWEST_SIDES:
        return math.nan
    counts = box_counts(cells, sides)
    plain = np.asarray(sides, np.float64)
    is_line = width * WIDEST < extent * cell
    large = plain + (max(0.0, math.pi / 4 * width - 1) / cell if is_line else 0.0)
    num_large = counts * (plain / large) ** 2
    size = np.log(large) - np.log(large).mean()
    dimension = 1.5
    for _ in range(ROUNDS):
        across = np.maximum(num_large ** (1 / dimension) - 1, TINY)
        dimension *= float(-(size @ np.log(across)) / (size @ size))  # least squares
    return dimension


def box_counts(cells: Image8, sides: Sequence[int]) -> Floats:
    """cells [h, w] uint8, 0 or 1 -> how many boxes of a grid of each of these sides hold any, the
    mean over OFFSETS places of the grid along each axis."""
    if not kernels.missing():
        return kernels.box_counts(cells, sides, OFFSETS)
    padded, counts = np.pad(cells, sides[-1]), []
    for side in sides:
        near = padded[sides[-1] - side :, sides[-1] - side :]
        any_in = cv2.dilate(near, np.ones((side, side), np.uint8), anchor=(0, 0)).view(np.bool_)
        places = sorted({side * place // OFFSETS for place in range(OFFSETS)})
        num = [np.count_nonzero(any_in[a::side, b::side]) for a in places for b in places]
        counts.append(np.mean(num))
    return np.array(counts)


def _cells(vessel: Image8, cell: int) -> Image8:
    """Which cells of so many px hold vessel."""
    height, width = (-(-side // cell) for side in vessel.shape)
    whole = np.zeros((height * cell, width * cell), np.uint8)
    whole[: vessel.shape[0], : vessel.shape[1]] = vessel
    rows = np.bitwise_or.reduce(whole.reshape(height, cell, -1), axis=1)
    columns = np.ascontiguousarray(rows.T).reshape(width, cell, height)
    return np.asarray(np.bitwise_or.reduce(columns, axis=1).T, np.uint8)
