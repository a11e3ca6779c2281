"""Where vessels meet: branch points are counted, and angles between daughters measured."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from segpipe.data.arrays import Mask, Plane
from segpipe.measurement.skeleton import Floats, Ints, Paths, Points, nearest

AHEAD = 0.025  # diameters of a branch from which its direction is taken: five usual calibres
APART = 1.5  # half widths from a branch point at which daughters are vessels of their own


class Places(NamedTuple):
    """Where branches meet, and which ends of segments leave them."""

    place: Ints
    """[B] of each leaving branch."""
    segment: Ints
    """[B] of each leaving branch, in paths."""
    at_last: Ints
    """[B] 1 where the branch leaves from its segment's last point, 0 from its first."""
    num_branches: Ints
    """[P] of each place."""

    def first(self, paths: Paths) -> Ints:
        """[B] the point of the paths at which each branch leaves."""
        ends = paths.last[self.segment], paths.start[self.segment]
        return np.where(self.at_last == 1, *ends)


def find_places(paths: Paths, forks: Points, lengths: Floats, depth: Plane) -> Places:
    """Branch points that belong together.

    `forks` [K] complex128 are the branch points of `trace`, `lengths` [S] float64 px those of the
    paths, `depth` [h, w] float32 px the vessels' half width.

    Forks whose discs within the vessel overlap are one place: thinning parts a crossing into two,
    and a junction into neighbouring pixels. What comes back to the same place is a hole's rim.
    """
    if not len(forks):
        return Places(*np.zeros((4, 0), np.int64))
    ends = np.stack([paths.points[paths.start], paths.points[paths.last]], axis=1)
    near = paths.forks.all(axis=1) & (lengths < nearest(depth, ends).sum(axis=1))
    width = depth.shape[1]
    number = (forks.imag * width + forks.real).astype(np.int64)  # ascending, as pixels were found
    place = np.searchsorted(number, (ends.imag * width + ends.real).astype(np.int64))
    label = components(len(forks), place[near])
    at = np.where(paths.forks, label[np.where(paths.forks, place, 0)], -1)
    segment, at_last = np.nonzero(paths.forks & (at[:, :1] != at[:, 1:]))
    leaving = at[segment, at_last]
    return Places(leaving, segment, at_last, np.bincount(leaving, minlength=label.max() + 1))


def components(num: int, pairs: Ints) -> Ints:
    """Nodes 0 to `num` - 1, pairs [P, 2] of them that belong together -> of each the number of its
    component, by their first nodes. SciPy's graphs take twice as long for few pairs."""
    first = list(range(num))  # of each node one that belongs to it and is not behind it

    def root(node: int) -> int:
        while first[node] != node:
            first[node] = node = first[first[node]]
        return node

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        first[high] = low
    for node in range(num):
        first[node] = first[first[node]]
    return np.unique(first, return_inverse=True)[1]


def leaving(
    places: Places, paths: Paths, points: Points, depth: Plane, diameter: float
) -> tuple[Points, Floats, Mask]:
    """-> of each leaving branch its chord [B] complex128 px, its half width [B] px at the chord's
    end, and whether it is long enough for a direction [B] bool.

    The chord goes from where it has left the discs of its branch point to AHEAD diameters on, or
    to its end where that comes before.
    """
    segment, first = places.segment, places.first(paths)
    away, length = 1 - 2 * places.at_last, paths.last[segment] - paths.start[segment]
    left = (
        np.ceil(APART * nearest(depth, paths.points[first])).astype(np.int64) + 1
    )  # points, not px
    far = left + math.ceil(AHEAD * diameter)
    long = far <= length
    near, far = np.minimum(left, length), np.minimum(far, length)
    end = first + away * far
    along = points[end] - points[first + away * near]
    return along, nearest(depth, paths.points[end]), long


def branch_angles(
    places: Places, paths: Paths, points: Points, depth: Plane, diameter: float
) -> Floats:
    """-> [P] float64 degrees, of every place of exactly three branches the least of their angles:
    that between the daughters, as the parent vessel comes from the other side.

    `points` [N] complex128 px are those of `paths`, smoothed, in a field `diameter` px across. NaN
    of places of more or fewer, and of those that have a branch too short for a direction.
    """
    kept = places.num_branches[places.place] == 3
    along, _, long = (part[kept] for part in leaving(places, paths, points, depth, diameter))
    order = np.argsort(places.place[kept], kind="stable").reshape(-1, 3)
    order = order[long[order].all(axis=1)]
    turn = along[order] / along[np.roll(order, 1, axis=1)]
    angles = np.full(len(places.num_branches), math.nan)
    of = places.place[kept][order[:, 0]]
    angles[of] = np.degrees(np.abs(np.angle(turn))).min(axis=1, initial=180.0)
    return angles


class Branchings(NamedTuple):
    """Places where three or more vessels meet."""

    at: Points
    """[P] complex128 px, the middle of each."""
    angles: Floats
    """[P] degrees between the daughters, NaN as of branch_angles."""

    def only(self, kept: Mask) -> Branchings:
        """Those that are kept [P]."""
        return Branchings(self.at[kept], self.angles[kept])

    @property
    def mean_angle(self) -> float:
        """Degrees; NaN of none."""
        told = self.angles[~np.isnan(self.angles)]
        return float(told.mean()) if len(told) else math.nan


def find_branchings(
    places: Places, paths: Paths, points: Points, depth: Plane, diameter: float
) -> Branchings:
    """Where places of three or more branches lie, and their angles; all as of branch_angles."""
    num = places.num_branches
    at = np.zeros(len(num), np.complex128)
    np.add.at(at, places.place, paths.points[places.first(paths)] / num[places.place])
    angles = branch_angles(places, paths, points, depth, diameter)
    return Branchings(at, angles).only(num >= 3)
