"""The circle that the rim of a region lies on, through cuts, dents and what is beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segpipe.data.arrays import Mask

TOLERANCE = 0.01  # of the radius: so near to a circle its points lie; 1.5 px of the search
TRIPLES = 120  # with 40 % of the points on a circle, one in 16 triples has all three on it
FEW_POINTS = 150  # of the rim, among which a triple's supporters are counted
FEWEST_POINTS = 20  # of a rim that may be a circle
ON_CIRCLE = 0.25  # of the rim's points; of a square's with its inner circle it is 0.2
BEYOND_CIRCLE = 0.2  # of the rim's points; of an octagon's with its inner circle it is 0.6
APART = 0.04  # of the radius: what is so far beyond a circle may be another's
ON_SECOND = 0.5  # of the points beyond a first circle, of two discs that touch
WIDEST_GAP = 1.3 * math.pi  # between neighbours on a circle: a shorter arc does not tell its radius

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Circle:
    """Its centre and radius in px; a pixel's centre has whole numbers."""

    x: float
    y: float
    radius: float


def _rim(region: Mask) -> Points:
    """region [h, w] bool -> where its rows and columns begin and end, (x, y) [n, 2].

    Ends at the image's border are left out: there the image ends, not the aperture.
    """
    ends = []
    for lines in (region, np.ascontiguousarray(region.T)):
        at = np.flatnonzero(lines.any(axis=1))
        first = lines[at].argmax(axis=1)
        after = lines.shape[1] - lines[at, ::-1].argmax(axis=1)
        begins, stops = first > 0, after < lines.shape[1]
        along = np.concatenate([first[begins], after[stops]]) - 0.5
        across = np.concatenate([at[begins], at[stops]])
        ends.append((along, across) if lines is region else (across, along))
    return np.concatenate([np.stack(pair, axis=1) for pair in ends])


def fit_circle(region: Mask) -> Circle | None:
    """region [h, w] bool -> the circle that its rim lies on, or None.

    None where too few of its points lie near it, too many beyond it, or all near it on one side.
    """
    rim = _rim(region)
    circle = _best(rim, region.shape)
    if circle is None:
        return None
    beyond = _beyond(rim, circle)
    on = np.abs(beyond) < TOLERANCE
    if on.mean() < ON_CIRCLE or (beyond > TOLERANCE).mean() > BEYOND_CIRCLE:
        return None
    x, y, radius = map(float, circle)
    angles = np.sort(np.arctan2(rim[on, 1] - y, rim[on, 0] - x))
    if np.diff(angles, append=angles[0] + 2 * np.pi).max() > WIDEST_GAP:
        return None
    return Circle(x, y, radius)


def fit_two(region: Mask) -> tuple[Circle, Circle] | None:
    """region [h, w] bool -> the two circles that the rims of two discs lie on that touch; or None.

    Each holds much of the rim, what lies beyond the first is the second's, and neither holds the
    other's centre.
    """
    rim = _rim(region)
    first = _best(rim, region.shape)
    if first is None:
        return None
    beyond = _beyond(rim, first)
    rest = rim[beyond > APART]
    second = _best(rest, region.shape)
    if second is None or (np.abs(beyond) < TOLERANCE).mean() < ON_CIRCLE:
        return None
    if (np.abs(_beyond(rest, second)) < 2 * TOLERANCE).mean() < ON_SECOND:
        return None
    if math.dist(first[:2], second[:2]) < max(first[2], second[2]):
        return None
    one, other = (Circle(*map(float, circle)) for circle in (first, second))
    return one, other


def _best(rim: Points, shape: tuple[int, ...]) -> Points | None:
    """The best circle (x, y, radius) [3] through three points of many triples of points [n, 2].

    RANSAC (Fischler and Bolles 1981), fitted again to all points near it by least squares (Kasa
    1976).
    """
    if len(rim) < FEWEST_POINTS:
        return None
    few = rim[:: max(1, len(rim) // FEW_POINTS)]
    circles = _through(few[np.random.default_rng(0).integers(0, len(few), (TRIPLES, 3))])
    radii = circles[:, 2]
    circles = circles[(radii > 0.1 * min(shape)) & (radii < math.hypot(*shape))]
    if not len(circles):
        return None
    num_near = (np.abs(_beyond(few, circles)) < TOLERANCE).sum(axis=1)
    circle: Points = circles[np.argmax(num_near)]
    for _ in range(2):
        near = rim[np.abs(_beyond(rim, circle)) < TOLERANCE]
        if len(near) < 3:
            return None
        circle = _through_all(near)
        if not 0 < circle[2] < math.hypot(*shape):
            return None
    return circle


def _beyond(points: Points, circle: Points) -> Points:
    """How far points (x, y) [n, 2] lie outside circles (x, y, radius) [..., 3], in their radii."""
    x, y, radius = (circle[..., i, None] for i in range(3))
    beyond: Points = np.sqrt((points[:, 0] - x) ** 2 + (points[:, 1] - y) ** 2) / radius - 1
    return beyond


def _through_all(points: Points) -> Points:
    """The circle (x, y, radius) [3] nearest to points (x, y) [n, 2]: a linear system (Kasa)."""
    middle = points.mean(axis=0)
    away = points - middle
    terms = np.column_stack([2 * away, np.ones(len(away))])
    x, y, rest = np.linalg.lstsq(terms, (away**2).sum(axis=1))[0]
    return np.array([middle[0] + x, middle[1] + y, math.sqrt(max(rest + x**2 + y**2, 0))])


def _through(triples: Points) -> Points:
    """Three points (x, y) each, [n, 3, 2] -> x, y, radius of the circles through them, [m, 3]."""
    a, b = triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0]
    twice = 2 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    proper = np.abs(twice) > 1
    a, b, twice, origin = a[proper], b[proper], twice[proper], triples[proper, 0]
    aa, bb = (a**2).sum(axis=1), (b**2).sum(axis=1)
    x = (b[:, 1] * aa - a[:, 1] * bb) / twice
    y = (a[:, 0] * bb - b[:, 0] * aa) / twice
    return np.stack([origin[:, 0] + x, origin[:, 1] + y, np.hypot(x, y)], axis=1)
