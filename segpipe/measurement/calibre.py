"""Centre lines and their vessels -> calibres: widths in px, and how they are spread."""

from __future__ import annotations

import math

import cv2
import numpy as np

from segpipe.data.arrays import Image8, Plane
from segpipe.measurement.skeleton import (
    Floats,
    Paths,
    Points,
    nearest,
)

PROFILE = 17  # samples across a vessel
ALONG = 4  # points before and behind, from which its direction is taken
EVERY = 4  # points of a path at which it is sampled: calibres change slowly


def measure_calibres(
    paths: Paths, points: Points, coverage: Image8, depth: Plane
) -> tuple[Floats, Floats]:
    """-> widths [M] float64 px of the vessel at points of its centre line, and [M] float64 px of
    centre line that each stands for: the weights of a mean.

    `points` [N] complex128 px are those of `paths`, smoothed; `coverage` [h, w] uint8 is how much
    of each pixel is vessel (255 all), `depth` [h, w] float32 px the vessels' half width.

    Twice the distance to the nearest background pixel is up to a pixel off, by the vessel's angle
    and by where its walls lie among the pixels. So the distance only tells how far to look: the
    width is the covered length of the profile across the centre line, which has no bias. Where
    other vessels join, within the distance from a branch point, none is measured.
    """
    segment = paths.segment
    start, last = paths.start[segment], paths.last[segment]
    number = np.arange(len(points))
    along = points[np.minimum(number + ALONG, last)] - points[np.maximum(number - ALONG, start)]
    steps = np.abs(points[np.minimum(number + 1, last)] - points[np.maximum(number - 1, start)])
    apart = along != 0
    for end, is_fork in zip((start, last), paths.forks.T, strict=True):
        reach = np.where(is_fork[segment], nearest(depth, points[end]), 0)
        apart &= np.abs(points - points[end]) >= reach + 1
    some = np.flatnonzero(apart)[::EVERY]
    if not len(some):
        return np.zeros(0), np.zeros(0)
    half = 1.25 * nearest(depth, points[some]) + 1.5
    normal = 1j * along[some] / np.abs(along[some])
    across = (normal * half)[:, None] * np.linspace(-1, 1, PROFILE)
    at = points[some][:, None] + across
    profile = cv2.remap(
        coverage, at.real.astype(np.float32), at.imag.astype(np.float32), cv2.INTER_LINEAR
    )
    middle = PROFILE // 2
    covered = np.zeros(len(some))
    for side in (profile[:, middle:], profile[:, middle::-1]):
        wall = np.minimum.accumulate(side, axis=1)  # what comes after a gap is another vessel
        covered += np.trapezoid(wall.astype(np.float64), axis=1) / 255
    return covered * half / middle, steps[some]


def mean_and_std(values: Floats, weights: Floats) -> tuple[float, float]:
    """values, weights [M] float64 -> weighted mean and standard deviation; NaN of none."""
    if not len(values):
        return math.nan, math.nan
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
