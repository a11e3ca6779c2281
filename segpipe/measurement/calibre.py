"""Centre lines and their vessels -> calibres: widths in px, and how they are spread."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from segpipe import kernels
from segpipe.data.arrays import Image8, Plane
from segpipe.measurement.skeleton import (
    Floats,
    Ints,
    Paths,
    Points,
    nearest,
)

PROFILE = 17  # samples across a vessel
BLUR_PX = 0.85  # sigma: by 1, 2, 1, so that a line at 45 degrees is not always met between pixels
CORE = 3  # samples from the centre line on in which cover may rise: it lies beside the middle
RISE = 12  # of 255 by which cover rises, across a vessel, where another one begins
ANY = 255  # of both along a vessel, whose cover varies where it lies between pixels
INSIDE = 127  # of 255: a profile that ends in more cover goes on beyond its end
MOST_TURN = 0.7  # radians, of the bend that goes on to a tip
TIP = 17  # samples from where a free end is straightened to beyond its tip
ALONG = 4  # points before and behind, from which its direction is taken
MOST_PROFILES = 1 << 14  # that are sampled at once: OpenCV takes fewer than 2^15
EVERY = 4.236  # points of a path from sample to sample: no fraction, or it keeps step with stairs


class Calibres(NamedTuple):
    """Widths of vessels, at some points of their centre lines."""

    at: Ints
    """[M] the points."""
    widths: Floats
    """[M] px."""
    weights: Floats
    """[M] px of centre line that each stands for: the weights of a mean."""


def measure_calibres(paths: Paths, points: Points, coverage: Image8, depth: Plane) -> Calibres:
    """The widths of the vessels of these paths, every EVERY points.

    `points` [N] complex128 px are those of `paths`, smoothed; `coverage` [h, w] uint8 is how much
    of each pixel is vessel (255 all), `depth` [h, w] float32 px the vessels' half width.

    Twice the distance to the nearest background pixel is up to a pixel off, by the vessel's angle
    and by where its walls lie among the pixels. So the distance only tells how far to look: the
    width is the covered length of the profile across the centre line, which has no bias. Where
    other vessels join, within the distance from a branch point, none is measured, nor where the
    vessel goes on beyond its profile.
    """
    segment = paths.segment
    start, last = paths.start[segment], paths.last[segment]
    number = np.arange(len(points))
    along = points[np.minimum(number + ALONG, last)] - points[np.maximum(number - ALONG, start)]
    apart = along != 0
    for end, is_fork in zip((paths.start, paths.last), paths.forks.T, strict=True):
        reach = np.where(is_fork, nearest(depth, points[end]), 0)
        apart &= np.abs(points - points[end][segment]) >= (reach + 1)[segment]
    some = np.flatnonzero(apart)
    some = some[np.arange(0, len(some), EVERY).astype(np.int64)]
    if not len(some):
        return Calibres(some, np.zeros(0), np.zeros(0))
    ahead, behind = np.minimum(some + 1, last[some]), np.maximum(some - 1, start[some])
    steps = np.abs(points[ahead] - points[behind])
    half = 1.25 * nearest(depth, points[some]) + 2.0
    coverage = np.asarray(cv2.GaussianBlur(coverage, (3, 3), BLUR_PX), np.uint8)
    normal = 1j * along[some] / np.abs(along[some])
    num = PROFILE // 2 + 1
    one, other = (
        _covered(coverage, points[some], side * half * normal, num, RISE, INSIDE)
        for side in (-1, 1)
    )
    widths = one + other
    seen = np.isfinite(widths)
    return Calibres(some[seen], widths[seen], steps[seen])


def reach_tips(paths: Paths, points: Points, coverage: Image8, depth: Plane) -> Points:
    """-> points [N] complex128 px: those of `paths`, smoothed, with their free ends at the tips.

    Thinning ends a line within half a width of the vessel's tip, anywhere between its corners. So
    the last half width of a path is replaced by a straight line to where the vessel ends.
    """
    if not len(points):
        return points
    segment, at_last = np.nonzero(~paths.forks & ~paths.closed[:, None])
    length = (paths.last - paths.start)[segment]
    total = np.add.reduceat(nearest(depth, paths.points), paths.start)
    half = total[segment] / (length + 1)  # px, the mean of the segment
    cut = np.ceil(half).astype(np.int64)
    kept = length >= 4 * cut
    segment, at_last, half, cut = (one[kept] for one in (segment, at_last, half, cut))
    first = np.where(at_last == 1, paths.last[segment], paths.start[segment])
    inward = np.where(at_last == 1, -1, 1)
    base = points[first + inward * cut]
    step = np.minimum(2 * cut + ALONG, (length[kept] - cut) // 2)
    if not len(step):
        return points
    middle, far = points[first + inward * (cut + step)], points[first + inward * (cut + 2 * step)]
    turn = np.angle((base - middle) * (middle - far).conj())  # between chords; on by half at base
    along = (base - middle) * np.exp(0.5j * turn.clip(-MOST_TURN, MOST_TURN))
    along /= np.maximum(np.abs(along), 1e-9)
    tip = _covered(coverage, base, along * (3 * half + 2), TIP, ANY, ANY)
    place = np.repeat(np.arange(len(cut)), cut)
    number = np.arange(len(place)) - np.repeat(np.cumsum(cut) - cut, cut)
    moved = points.copy()
    share = 1 - number / cut[place]
    moved[first[place] + inward[place] * number] = base[place] + (along * tip)[place] * share
    return moved


def _covered(
    coverage: Image8, start: Points, reach: Points, num: int, rise: int, most: int
) -> Floats:
    """-> [M] float64 px of vessel from each point of `start` [M] on, along `reach` [M] (px) and no
    farther: what comes after a gap, or from where cover rises by more than `rise` again, is another
    vessel. `num` samples are taken along each; NaN where the last has cover of more than `most`."""
    if len(start) > MOST_PROFILES:
        parts = range(0, len(start), MOST_PROFILES)
        some = [np.s_[part : part + MOST_PROFILES] for part in parts]
        return np.concatenate(
            [_covered(coverage, start[part], reach[part], num, rise, most) for part in some]
        )
    at = start[:, None] + reach[:, None] * np.linspace(0, 1, num)
    across, down = (part.astype(np.float32) for part in (at.real, at.imag))
    levels = np.asarray(cv2.remap(coverage, across, down, cv2.INTER_LINEAR), np.uint8)
    return _sums(levels, rise, most) / 255 * np.abs(reach) / (num - 1)


def _sums(levels: Image8, rise: int, most: int) -> Floats:
    """Levels of cover [M, K] along some profiles -> the sums by trapezoids of what is of the vessel
    that a profile begins in; NaN where that ends in more than `most`."""
    if not kernels.missing():
        return kernels.cover_sums(levels, CORE, rise, most)
    profile = levels.copy()
    outer = profile[:, CORE:]
    highest = profile[:, :CORE].max(axis=1)
    lowest = np.minimum.accumulate(np.minimum(outer, highest[:, None]), axis=1)
    other = np.logical_or.accumulate(outer - lowest > rise, axis=1)
    profile[:, CORE:] = np.where(other, 0, lowest)
    sums = profile.sum(axis=1, dtype=np.float64) - (profile[:, 0] / 2.0 + profile[:, -1] / 2.0)
    return np.where(profile[:, -1] > most, np.nan, sums)


def mean_and_std(values: Floats, weights: Floats) -> tuple[float, float]:
    """values, weights [M] float64 -> weighted mean and standard deviation; NaN of none."""
    if not len(values):
        return math.nan, math.nan
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
