"""Rings around the optic disc, and the calibres of the large vessels that cross them.

Zones B and C as the Atherosclerosis Risk in Communities Study drew them, in disc diameters from the
disc's margin; equivalents by Knudtson et al. 2003, "Revised formulas for summarizing retinal vessel
diameters", Current Eye Research 27: ratios of widths alone, so that they hold in any unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from segpipe.data.arrays import Mask
from segpipe.measurement.branching import components, find_places
from segpipe.measurement.disc import Disc
from segpipe.measurement.skeleton import Floats, Points, arc_lengths
from segpipe.measurement.traced import BORDER_PX, Traced

LEAST_SHARE = 0.5  # of a zone that lies in the field of view, below which nothing is told of it
LARGEST = 6  # vessels of a kind that an equivalent is made of
LEAST_SPAN = 0.5  # of a zone's depth that a vessel crosses to count
FINER = 4  # bits: circles are drawn to a sixteenth of a px
ARTERIOLES, VENULES = 0.88, 0.95
"""Knudtson's branching coefficients: a trunk's width for the root of its branches' squares."""


class Ring:
    """A zone around a disc, where vessels were traced."""

    def __init__(self, traced: Traced, disc: Disc, edges: tuple[float, float]) -> None:
        """`disc` in px of the mask; `edges` as in ZONES."""
        top, left = traced.corner
        scale, size = traced.scale, disc.diameter * traced.scale
        x = (disc.x - left + 0.5) * scale - 0.5 + BORDER_PX
        y = (disc.y - top + 0.5) * scale - 0.5 + BORDER_PX
        self.middle = complex(x, y)
        self.inner, self.outer = ((0.5 + edge) * size for edge in edges)
        reach = math.ceil(self.outer) + 1
        top, left = (max(0, round(at) - reach) for at in (y, x))
        self.box = np.s_[top : round(y) + reach + 1, left : round(x) + reach + 1]
        """Rows and columns around it."""
        within = traced.fov[self.box]
        ring, parts = np.zeros(within.shape, np.uint8), 1 << FINER
        for radius, value in ((self.outer, 1), (self.inner, 0)):
            centre = round((x - left) * parts), round((y - top) * parts)
            cv2.circle(ring, centre, round(radius * parts), value, -1, shift=FINER)
        self.plane: Mask = ring.view(np.bool_) & within
        """Of the box, bool: the zone within the field of view."""
        whole = math.pi * (self.outer**2 - self.inner**2)
        self.share = float(np.count_nonzero(self.plane) / whole)
        """Of the zone that lies in the field."""

    def holds(self, points: Points) -> Mask:
        """points [N] complex128 px -> [N] bool: which of them lie in it."""
        away = np.abs(points - self.middle)
        return np.asarray((away >= self.inner) & (away < self.outer))


def vessel_widths(part: Traced, ring: Ring) -> Floats:
    """Parts of paths in a ring, of one kind -> px that each of its vessels is wide, widest first.

    Parts that meet are one vessel, which is as wide as its widest part; a part counts that crosses
    LEAST_SPAN of the ring's depth.
    """
    paths = part.paths
    num = len(paths.start)
    at, widths, weights = part.calibres
    if not len(at):
        return np.zeros(0)
    segment = paths.segment
    total = np.bincount(segment[at], weights, num)
    mean = np.bincount(segment[at], widths * weights, num) / np.maximum(total, 1e-9)
    away = np.abs(part.points - ring.middle)
    span = np.maximum.reduceat(away, paths.start) - np.minimum.reduceat(away, paths.start)
    counts = (span >= LEAST_SPAN * (ring.outer - ring.inner)) & (total > 0)
    places = find_places(paths, part.forks, arc_lengths(paths, paths.points), part.depth)
    size = num + len(places.num_branches)
    vessel = components(size, np.stack([places.segment, num + places.place], axis=1))[:num]
    widest = np.zeros(size)
    np.maximum.at(widest, vessel[counts], mean[counts])
    return np.sort(widest[widest > 0])[::-1]


def equivalent(widths: Sequence[float] | Floats, coefficient: float) -> float:
    """Widths of a kind's vessels, widest first -> that of the central vessel they would come from;
    NaN of fewer than LARGEST.

    Round by round the widest is joined with the narrowest, and the middle one of an odd number
    goes on as it is, until one is left.
    """
    left = [float(width) for width in widths[:LARGEST]]
    if len(left) < LARGEST:
        return math.nan
    while len(left) > 1:
        left.sort()
        half = len(left) // 2
        pairs = zip(left[:half], reversed(left[-half:]), strict=True)
        joined = [coefficient * math.hypot(*pair) for pair in pairs]
        left = joined + left[half : len(left) - half]
    return left[0]
