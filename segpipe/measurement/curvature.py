"""Centre lines -> how much they bend: squared curvature, which straight vessels have none of."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from segpipe.data.arrays import Mask
from segpipe.measurement.skeleton import Floats, Ints, Paths, Points, filtered

SIGMA = 0.015  # diameters along a path: the stairs of pixels are noise of a higher derivative
PER_SIGMA = 4  # points that are enough of a smoothed path
REACH = 3.5  # sigmas at which the filters end
MARGIN = 1.5  # sigmas from an end within which nothing is told: the reflection there is straight


class Bends(NamedTuple):
    """How much centre lines bend, at some of their points."""

    at: Ints
    """[M] the points."""
    squared: Floats
    """[M] squared curvature, 1/px^2."""
    weights: Floats
    """[M] in proportion to the centre line that each stands for: the weights of a mean."""

    @property
    def mean(self) -> float:
        """1/px^2; NaN of none."""
        some = self.weights.any()
        return float(np.average(self.squared, weights=self.weights)) if some else math.nan

    def only(self, points: Mask) -> Bends:
        """At those of the points [N] of the paths."""
        kept = points[self.at]
        return Bends(self.at[kept], self.squared[kept], self.weights[kept])


def squared_curvature(paths: Paths, points: Points, diameter: float) -> Bends:
    """-> the squared curvature along the paths, where they are long enough.

    `points` [N] complex128 px are those of `paths`, smoothed, in a field `diameter` px across. The
    curvature is Im(conj(p') p'') / |p'|^3 of paths smoothed by SIGMA with a filter that keeps
    cubic curves (a Gaussian less half its second derivative): arcs are not flattened. Times a
    path's length the mean is its total squared curvature, as Hart et al. 1999 have it,
    the integral of squared curvature along the path.
    """
    sigma = SIGMA * diameter
    every = max(1, int(sigma / PER_SIGMA))
    kept, at = _every(paths, points, every)
    if not len(at):
        return Bends(at, np.zeros(0), np.zeros(0))
    first, second = filtered(kept, *_derivatives(sigma / every))
    number, segment = np.arange(len(kept.points)), kept.segment
    end = np.minimum(number - kept.start[segment], kept.last[segment] - number)
    inner = kept.closed[segment] | (end >= MARGIN * sigma / every)
    step = np.abs(first[inner])
    curvature = (first[inner].conj() * second[inner]).imag / np.maximum(step, 1e-9) ** 3
    return Bends(at[inner], curvature**2, step)


def _every(paths: Paths, points: Points, step: int) -> tuple[Paths, Ints]:
    """Every so many points of the paths, which keep their first ones, and which they are."""
    number = np.arange(len(points)) - paths.start[paths.segment]
    kept = np.flatnonzero(number % step == 0)
    num = (paths.last - paths.start) // step + 1
    start = np.cumsum(num) - num
    return Paths(points[kept], start, start + num - 1, paths.forks, paths.closed), kept


def _derivatives(sigma: float) -> tuple[Floats, Floats]:
    """-> filters [2 R + 1] of the first and the second derivative, per point.

    They are those of G - sigma^2 / 2 G'', scaled to be exact on lines and on parabolas.
    """
    reach = math.ceil(REACH * sigma)
    at = np.arange(-reach, reach + 1) / sigma
    gauss = np.exp(-0.5 * at**2)
    first = gauss * (at**3 - 5 * at)
    second = gauss * (-(at**4) + 8 * at**2 - 5)
    second -= gauss * second.sum() / gauss.sum()
    return first / -(first @ at * sigma), 2 * second / (second @ at**2 * sigma**2)
