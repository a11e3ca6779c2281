"""Vessels [h, w] -> their centre lines: thinned, traced as paths, rid of spurs, smoothed.

Points are x + iy in px, of the centres of pixels; widths and lengths are in px.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from segpipe import kernels
from segpipe.data.arrays import Image8, Mask, Plane

SPUR_PX = 3.0  # a branch that leaves its vessel's wall by less is the wall's roughness
CORNER = 1.5  # half widths: more than the square root of 2, the way to the corner of a flat end
BITS = np.array([[1, 2, 4], [128, 0, 8], [64, 32, 16]], np.float32)  # of the pixels around one
REACH = 3.5  # sigmas at which the smoothing ends

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Points = npt.NDArray[np.complex128]


def thin(vessel: Image8) -> Mask:
    """vessel [h, w] uint8, 0 or 1, empty along its border -> its centre lines [h, w] bool.

    Algorithm A1 of Guo and Hall 1989, pixel by pixel what scikit-image's `thin` does. Zhang and
    Suen's, its `skeletonize`, eats up to half of a diagonal line whose width is even.
    """
    if not kernels.missing():
        return kernels.thin_lines(vessel)
    width, size = vessel.shape[1], vessel.size
    around = (-width - 1, -width, 1 - width, 1, width + 1, width, width - 1, -1)
    bits = np.asarray(cv2.filter2D(vessel, -1, BITS), np.uint8).ravel()  # those left around each
    layers = _layers(vessel)  # a pixel cannot go before those between it and the background
    pixels, step, idle = np.zeros(0, np.int64), 0, 0
    while layers or idle < 2:  # steps of both kinds in which nothing went
        if layers:
            pixels = np.append(pixels, layers.pop())
        stays = _kept()[step % 2].take(bits.take(pixels))
        gone, pixels = pixels[~stays], pixels[stays]
        for bit, beside in enumerate(around):
            near = gone - beside
            bits[near] = bits.take(near) & np.uint8(255 - (1 << bit))
        step, idle = step + 1, 0 if len(gone) else idle + 1
    line = np.zeros(size, np.bool_)
    line[pixels] = True
    return line.reshape(vessel.shape)


def _layers(vessel: Image8) -> list[Ints]:
    """The pixels (flat) by their distance from the background in king's moves, the nearest last."""
    pixels = np.flatnonzero(vessel.view(np.bool_))
    distance = np.asarray(cv2.distanceTransform(vessel, cv2.DIST_C, 3), np.float32)
    moves = distance.ravel()[pixels].astype(np.int16)  # 16 bits are sorted by counting
    pixels = pixels[np.argsort(-moves, kind="stable")]
    return np.split(pixels, np.cumsum(np.bincount(moves)[:0:-1])[:-1])


@lru_cache(maxsize=1)
def _kept() -> tuple[Mask, Mask]:
    """For each of both steps [256]: whether a pixel stays that has these bits around it.

    Bits go clockwise from the upper left, the paper's p1 to p8.
    """
    p1, p2, p3, p4, p5, p6, p7, p8 = (np.arange(256) >> bit & 1 for bit in range(8))
    pieces = (1 - p2) * (p3 | p4) + (1 - p4) * (p5 | p6) + (1 - p6) * (p7 | p8)
    pieces += (1 - p8) * (p1 | p2)
    pairs = (p1 | p2) + (p3 | p4) + (p5 | p6) + (p7 | p8)
    others = (p2 | p3) + (p4 | p5) + (p6 | p7) + (p8 | p1)
    fewest = np.minimum(pairs, others)
    loose = (pieces == 1) & (fewest >= 2) & (fewest <= 3)
    first, second = (p2 | p3 | 1 - p5) * p4, (p6 | p7 | 1 - p1) * p8
    return ~(loose & (first == 0)), ~(loose & (second == 0))


class Paths(NamedTuple):
    """Segments of a skeleton, one after the other, each from end to end."""

    points: Points
    """[N] x + iy of the pixels in order; a branch point comes once in each of its segments."""
    start: Ints
    """[S] where each segment starts in points."""
    last: Ints
    """[S] where its last point is."""
    forks: Mask
    """[S, 2] whether its first and its last point are branch points."""
    closed: Mask
    """[S] whether its last point is next to its first."""

    @property
    def segment(self) -> Ints:
        """[N] of each point."""
        return np.repeat(np.arange(len(self.start)), self.last - self.start + 1)


def trace(skeleton: Mask) -> tuple[Paths, Points]:
    """skeleton [h, w] bool, empty along its border -> its segments in path order, and the branch
    points [K] complex128: x + iy (px) of the pixels where three or more segments meet.

    Diagonal neighbours are joined only where no pixel beside both joins them already.
    """
    if not kernels.missing():
        found = kernels.trace_lines(skeleton)
        points, branch_points = (
            x + 1j * y
            for y, x in (np.divmod(part, skeleton.shape[1]) for part in (found[0], found[-1]))
        )
        begins = found.start.astype(np.int64)
        last = np.append(begins, len(points))[1:] - 1
        return Paths(points, begins, last, found.forks, found.closed), branch_points
    pixels, edges = _edges(skeleton)
    y, x = np.divmod(pixels, skeleton.shape[1])
    place = x + 1j * y
    fork = np.bincount(edges.ravel(), minlength=len(pixels)) >= 3
    # Every edge gets an end of its own at a fork: what is left are paths and rings.
    split = fork[edges]
    node = edges.copy()
    node[split] = len(pixels) + np.arange(np.count_nonzero(split))
    place_of = np.concatenate([place, place[edges[split]]])
    order, start = _walk(node, len(place_of))
    last = np.append(start, len(order))[1:] - 1
    is_fork = order >= len(pixels)
    ends = np.bincount(node.ravel(), minlength=len(place_of)) == 1
    forks = np.stack([is_fork[start], is_fork[last]], axis=1)
    return Paths(place_of[order], start, last, forks, ~ends[order[start]]), place[fork]


def _edges(skeleton: Mask) -> tuple[Ints, Ints]:
    """-> pixels [N] (flat), edges [E, 2]: the numbers of two neighbouring ones.

    Diagonal neighbours are joined only where no pixel beside both joins them already.
    """
    flat, width = skeleton.ravel(), skeleton.shape[1]
    pixels = np.flatnonzero(flat)
    number = np.empty(flat.size, np.int64)
    number[pixels] = np.arange(len(pixels))
    found = []
    for step, beside in ((1, ()), (width, ()), (width + 1, (1, width)), (width - 1, (-1, width))):
        joined = flat[pixels + step]
        for other in beside:
            joined &= ~flat[pixels + other]
        one = np.flatnonzero(joined)
        found.append(np.stack([one, number[pixels[one] + step]], axis=1))
    return pixels, np.concatenate(found)


def _walk(edges: Ints, num_nodes: int) -> tuple[Ints, Ints]:
    """Edges that form paths and rings -> their nodes, one path after the other, and where each
    starts.

    Roots, each joined to the next one, are joined to both ends of every path and to a point of
    every ring: a walk into the depth from the first takes each from end to end.
    """
    degree = np.bincount(edges.ravel(), minlength=num_nodes)
    starts = np.flatnonzero(degree == 1)
    order = _depth_first(edges, starts, num_nodes)
    if len(order) < np.count_nonzero(degree):
        left = degree > 0
        left[order] = False
        rings = np.flatnonzero(left)
        graph = sparse.coo_array((np.ones(len(edges)), tuple(edges.T)), (num_nodes, num_nodes))
        label = csgraph.connected_components(graph, directed=False)[1]
        starts = np.append(starts, rings[np.unique(label[rings], return_index=True)[1]])
        order = _depth_first(edges, starts, num_nodes)
    begins = np.zeros(num_nodes, np.bool_)
    begins[starts] = True
    ends = degree[order] == 1
    arrived = ends & (np.cumsum(ends) % 2 == 0)
    return order, np.flatnonzero(begins[order] & ~arrived)


def _depth_first(edges: Ints, starts: Ints, num_nodes: int) -> Ints:
    # A root for each start: SciPy looks through all that one root has again after each of them.
    roots = np.arange(num_nodes, num_nodes + len(starts) + 1)
    first, following = (
        np.stack([roots[:-1], ends], axis=1) for ends in (np.sort(starts), roots[1:])
    )
    both = np.concatenate([edges, edges[:, ::-1], first, following])
    size = num_nodes + len(roots)
    graph = sparse.coo_array((np.ones(len(both)), tuple(both.T)), (size, size)).tocsr()
    order = csgraph.depth_first_order(graph, num_nodes, return_predecessors=False)
    return np.asarray(order[order < num_nodes], np.int64)


def without_spurs(skeleton: Mask, depth: Plane) -> Mask:
    """skeleton [h, w] bool -> the same without the branches that hardly leave their vessel.

    A branch with one free end goes where it is less than SPUR_PX longer than the vessel's half
    width at its other end, or shorter than CORNER of them: `depth` [h, w] float32 tells it in px
    (the distance to the nearest background pixel).
    """
    if not kernels.missing():
        return kernels.without_spurs(skeleton, depth, SPUR_PX, CORNER)
    paths, _ = trace(skeleton)
    if not len(paths.start):
        return skeleton
    fork = paths.points[np.where(paths.forks[:, 0], paths.start, paths.last)]
    loose = paths.forks[:, 0] != paths.forks[:, 1]
    half = nearest(depth, fork)
    longest = np.maximum(half + SPUR_PX, CORNER * half + 1)
    spur = loose & (arc_lengths(paths, paths.points) < longest)
    gone = spur[paths.segment]
    gone[paths.start[paths.forks[:, 0]]] = False
    gone[paths.last[paths.forks[:, 1]]] = False
    kept = skeleton.copy()
    kept[_pixels(paths.points[gone])] = False
    return kept


def _pixels(points: Points) -> tuple[Ints, Ints]:
    """-> rows, columns of the nearest pixels."""
    return np.rint(points.imag).astype(np.int64), np.rint(points.real).astype(np.int64)


def nearest(plane: Plane, points: Points) -> Floats:
    """plane [h, w] float32, points [...] complex128 (px) -> the nearest pixels' [...] float64."""
    rows, columns = (
        part.clip(0, size - 1) for part, size in zip(_pixels(points), plane.shape, strict=True)
    )
    return np.asarray(plane[rows, columns], np.float64)


def smooth(paths: Paths, sigma: float) -> Points:
    """-> points [N] complex128 (px): the paths' own after a filter of `sigma` points along each.

    It is a Gaussian less half its second derivative, which flattens no bend to second order.
    """
    at = np.arange(-math.ceil(REACH * sigma), math.ceil(REACH * sigma) + 1) / sigma
    weights = np.exp(-0.5 * at**2) * (3 - at**2)
    return filtered(paths, weights / weights.sum())


def filtered(paths: Paths, *weights: Floats) -> Points:
    """-> points [N] complex128 (px): the paths' own after a filter along each; of several filters
    [2 R + 1] of one length, [K, N].

    Beyond its ends a path goes on as its reflection through them, so that an even filter leaves
    ends and straight lines where they are; a ring goes round.
    """
    if not len(paths.points):
        return np.zeros((len(weights), 0) if len(weights) > 1 else 0, np.complex128)
    if not kernels.missing():
        found = np.stack([kernels.filtered_paths(*paths[:3], paths.closed, one) for one in weights])
        return found if len(found) > 1 else found[0]
    reach = len(weights[0]) // 2
    padded = paths.last - paths.start + 1 + 2 * reach
    first, last = np.repeat(paths.start, padded), np.repeat(paths.last, padded)
    ring = np.repeat(paths.closed, padded)
    at = first + np.arange(len(first)) - np.repeat(np.cumsum(padded) - padded, padded) - reach
    mirror = at.clip(first, last)
    inner = np.where(ring, first + (at - first) % (last - first + 1), 2 * mirror - at)
    points = paths.points[inner.clip(first, last)]
    outside = ~ring & (mirror != at)
    points[outside] = 2 * paths.points[mirror[outside]] - points[outside]
    kept = mirror == at
    found = np.empty((len(weights), len(paths.points)), np.complex128)
    for row, one in zip(found, weights, strict=True):
        row.real, row.imag = (
            np.convolve(part, one, "same")[kept] for part in (points.real, points.imag)
        )
    return found if len(found) > 1 else found[0]


def chord_lengths(paths: Paths, points: Points) -> Floats:
    """-> [S] float64 px from each path's first point to its last; 0 for rings, which have none.

    `points` [N] complex128 are the paths' own, or those smoothed; so too of arc_lengths.
    """
    return np.where(paths.closed, 0.0, np.abs(points[paths.last] - points[paths.start]))


def arc_lengths(paths: Paths, points: Points) -> Floats:
    """-> [S] float64 px along each path's points, rings closed."""
    if not len(points):
        return np.zeros(0)
    steps = np.abs(np.diff(points, append=0))
    closing = np.abs(points[paths.last] - points[paths.start])
    steps[paths.last] = np.where(paths.closed, closing, 0)
    return np.add.reduceat(steps, paths.start)
