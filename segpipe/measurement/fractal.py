"""Vessels -> their fractal dimension, by box counting."""

from __future__ import annotations

import math

import cv2
import numpy as np

from segpipe.data.arrays import Image8

CELL_PX = 2  # boxes are counted in cells of so many px
BOXES = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # sides in cells: from a usual calibre to an eighth of 540
FEWEST_ACROSS = 4  # boxes over the vessels' extent
FEWEST_SIDES = 3  # of boxes, through which a line is fitted
OFFSETS = 4  # places of the grid of boxes along each axis
ROUNDS = 10  # of the fit: five bring it to four digits


def fractal_dimension(vessel: Image8) -> float:
    """vessel [h, w] uint8, 0 or 1 -> its box-counting dimension, from 0 to 2: how the number of
    boxes that hold vessel falls with their side.

    Boxes are as wide as a usual vessel at least, since in smaller ones any vessel is a surface, and
    a quarter of the vessels' extent at most. Over all places of the grid a line of length e meets
    e / side + 1 boxes on average and a square the square of that: the 1 is boxes that are cut by an
    end. So N^(1/D) - 1, and not N^(1/D), goes with 1 / side, and D is the number for which it does.
    NaN where the vessels' extent is below 32 px. The correction for ends is segpipe's own; plain
    box counting is low for short lines.
    """
    cells = _cells(vessel)
    extent = max(cv2.boundingRect(cells)[2:])
    sides = [side for side in BOXES if side * FEWEST_ACROSS <= extent]
    if len(sides) < FEWEST_SIDES:
        return math.nan
    padded, counts = np.pad(cells, sides[-1]), []
    for side in sides:
        near = padded[sides[-1] - side :, sides[-1] - side :]
        any_in = cv2.dilate(near, np.ones((side, side), np.uint8), anchor=(0, 0)).view(np.bool_)
        places = sorted({side * place // OFFSETS for place in range(OFFSETS)})
        num = [np.count_nonzero(any_in[a::side, b::side]) for a in places for b in places]
        counts.append(np.mean(num))
    size = np.log(sides) - np.log(sides).mean()
    dimension = 1.5
    for _ in range(ROUNDS):
        across = np.asarray(counts) ** (1 / dimension) - 1
        dimension *= float(-(size @ np.log(across)) / (size @ size))  # least squares
    return dimension


def _cells(vessel: Image8) -> Image8:
    height, width = (side // CELL_PX * CELL_PX for side in vessel.shape)
    rows = vessel[:height:CELL_PX, :width] | vessel[1:height:CELL_PX, :width]
    return rows[:, ::CELL_PX] | rows[:, 1::CELL_PX]
