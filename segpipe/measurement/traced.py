"""A mask -> its vessels traced: centre lines, widths, and where the field of view is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from segpipe import kernels
from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.canvas import SAME_SCALE
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.fov import fov_box
from segpipe.measurement.branching import Branchings, find_branchings, find_places
from segpipe.measurement.calibre import Calibres, measure_calibres, reach_tips
from segpipe.measurement.curvature import Bends, squared_curvature
from segpipe.measurement.skeleton import (
    Ints,
    Paths,
    Points,
    arc_lengths,
    smooth,
    thin,
    trace,
    without_spurs,
)

LEAST_FIELD, LARGEST_FIELD = 500.0, 1024.0  # px across, between which a mask is measured as it is
COVERED = 85  # of 255: a third. At a half, lines a pixel wide break where they lie between pixels
SPECK = 5e-5  # squared diameters: what is less than 0.02 of the thinnest vessel (0.0025)
SMOOTHING_PX = 2.0  # sigma along a path: more than the stairs of pixels, less than any bend
BORDER_PX = 2  # around the field's box, where all is empty


@dataclass(frozen=True)
class Traced:
    """Vessels of a mask, in the px where they are measured: the field's box at some scale, and
    BORDER_PX around it."""

    fov: Mask
    """[h, w] bool: the field of view."""
    vessel: Image8
    """[h, w] uint8, 0 or 1, without specks."""
    coverage: Image8
    """[h, w] uint8: how much of each px is vessel, 255 all."""
    depth: Plane
    """[h, w] float32 px: the vessels' half width, at their centre."""
    paths: Paths
    points: Points
    """[N] complex128 px: those of `paths`, smoothed, with free ends at the tips."""
    forks: Points
    """[K] complex128: the branch points of `trace`."""
    num_components: int
    corner: tuple[int, int]
    """Row and column in the mask of the field's box."""
    scale: float
    """px here for one of the mask."""
    diameter: float
    """px here across the field: its larger extent."""
    known: Calibres | None = None
    """Where they were measured already."""

    @cached_property
    def calibres(self) -> Calibres:
        """How wide the vessels are."""
        return self.known or measure_calibres(self.paths, self.points, self.coverage, self.depth)

    @cached_property
    def branchings(self) -> Branchings:
        """Where three or more vessels meet."""
        paths, points, depth = self.paths, self.points, self.depth
        places = find_places(paths, self.forks, arc_lengths(paths, points), depth)
        return find_branchings(places, paths, points, depth, self.diameter)

    @cached_property
    def bends(self) -> Bends:
        """How much the centre lines bend."""
        return squared_curvature(self.paths, self.points, self.diameter)

    def to_mask(self, points: Points) -> Points:
        """Points [...] complex128 px here -> in px of the mask; pixels' centres are whole."""
        top, left = self.corner
        half = 0.5 + 0.5j
        return (points - (BORDER_PX + 1j * BORDER_PX) + half) / self.scale - half + left + 1j * top

    def only(self, kept: Mask, vessel: Image8 | None = None) -> Traced:
        """Those parts of the paths whose points [N] are kept; `vessel` is what belongs to them."""
        paths, at = cut(self.paths, kept)
        place = np.full(len(kept), -1)
        place[at] = np.arange(len(at))
        inside = place[self.calibres.at] >= 0
        at_kept = place[self.calibres.at[inside]]
        calibres = Calibres(at_kept, self.calibres.widths[inside], self.calibres.weights[inside])
        other = self.vessel if vessel is None else vessel
        return replace(self, paths=paths, points=self.points[at], known=calibres, vessel=other)


def trace_mask(mask: Image8) -> Traced | None:
    """mask [H, W] uint8 classes (0 outside the field, 1 vessel, 2 background) -> its vessels; None
    where it has no field of view."""
    mask = np.ascontiguousarray(mask)
    fov = mask != OUTSIDE
    if not fov.any():
        return None
    top, left, bottom, right = fov_box(fov)
    extent = max(bottom - top, right - left)
    scale = scale_of(extent)
    box = np.s_[top:bottom, left:right]
    coverage = _resample(mask[box] == VESSEL, scale)
    inside = _resample(fov[box], scale) > 127
    vessel, num_components = _without_specks(coverage >= COVERED, extent * scale)
    depth = _half_widths(vessel)
    paths, forks = trace(without_spurs(thin(vessel), depth))
    points = reach_tips(paths, smooth(paths, SMOOTHING_PX), coverage, depth)
    found = vessel, coverage, depth, paths, points, forks, num_components
    return Traced(inside, *found, (top, left), scale, extent * scale)


def _half_widths(vessel: Image8) -> Plane:
    """vessel [h, w] uint8, 0 or 1 -> px to the nearest background pixel [h, w] float32."""
    if not kernels.missing():
        return kernels.vessel_depth(vessel)
    return np.asarray(cv2.distanceTransform(vessel, cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)


def cut(paths: Paths, kept: Mask) -> tuple[Paths, Ints]:
    """-> the runs of kept [N] points along the paths, and which points [n] they are.

    What is cut off is no branch point; a ring that is cut is one no more. A single point is none.
    """
    goes_on = np.zeros(len(kept) + 1, np.bool_)  # from the point before, first of all points
    goes_on[1:-1] = kept[:-1] & kept[1:]
    goes_on[paths.start] = False
    edges = np.flatnonzero(goes_on[1:] != goes_on[:-1])
    first, last = edges[::2], edges[1::2]
    of = np.searchsorted(paths.start, first, side="right") - 1
    whole = (first == paths.start[of]) & (last == paths.last[of])
    forks = np.stack(
        [
            paths.forks[of, 0] & (first == paths.start[of]),
            paths.forks[of, 1] & (last == paths.last[of]),
        ],
        axis=1,
    )
    length = last - first + 1
    start = np.cumsum(length) - length
    at: Ints = np.repeat(first - start, length) + np.arange(int(length.sum()))
    made = Paths(paths.points[at], start, start + length - 1, forks, paths.closed[of] & whole)
    return made, at


def scale_of(extent: float) -> float:
    """The factor at which a field of this extent (px) is measured."""
    if extent > LARGEST_FIELD * (1 + SAME_SCALE):
        return LARGEST_FIELD / extent
    return LEAST_FIELD / extent if extent < LEAST_FIELD else 1.0


def _resample(vessel: Mask, scale: float) -> Image8:
    """vessel [H, W] bool -> how much of each px is covered [h, w] uint8 in 0 to 255, and BORDER_PX
    more on each side."""
    coverage = vessel.view(np.uint8) * np.uint8(255)
    if scale != 1.0:
        height, width = (max(1, round(side * scale)) for side in vessel.shape)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        coverage = np.asarray(cv2.resize(coverage, (width, height), interpolation=how), np.uint8)
    return np.pad(coverage, BORDER_PX)


def _without_specks(vessel: Mask, diameter: float) -> tuple[Image8, int]:
    """vessel [h, w] bool -> its 8-connected components of a vessel's area [h, w] uint8, their
    number."""
    least = SPECK * diameter**2
    if not kernels.missing():
        return kernels.without_specks(vessel.view(np.uint8), least)
    large = vessel.astype(np.uint8)
    num, label = cv2.connectedComponents(large, connectivity=8, ltype=cv2.CV_32S)
    pixels = np.flatnonzero(vessel)
    component = np.asarray(label).ravel()[pixels]
    kept = np.bincount(component, minlength=num) >= least
    large.ravel()[pixels[~kept[component]]] = 0
    return large, int(kept.sum())
