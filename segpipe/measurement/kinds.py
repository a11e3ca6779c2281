"""Arteries and veins: what the network says of each pixel, and the vessel that it belongs to."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from segpipe import kernels
from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.measurement.branching import Places, find_places, leaving
from segpipe.measurement.skeleton import Floats, Ints, arc_lengths, nearest
from segpipe.measurement.traced import BORDER_PX, Traced

OUTSIDE, ARTERY, VEIN, CROSSING, BACKGROUND = range(5)
"""Of a picture of kinds; CROSSING: an artery and a vein, one above the other."""
EVERY = 2  # px: the nearest centre line is found for every other pixel of every other row
CROSSING_REACH = 1.5  # half widths from where four branches meet
SUREST = 3.0  # log odds of a pixel, beyond which it says no more
# What it costs that two branches of one place are of two kinds, in log odds of such pixels: of a
# fork, of one that goes on straight with much the same width, and of a crossing that goes on
# straight. Chosen on training photographs (results/LOG.md).
FORK, STRAIGHT, ACROSS = 10.0, 30.0, 30.0
STRAIGHT_COS, ACROSS_COS, ALIKE = 0.9, 0.85, 0.6  # cosines; the thinner's width, of the wider's
MOST_BRANCHES = 5  # of a place; more are a tangle
TO_INTEGERS = 100  # of costs, which flows want whole


class Kinds(NamedTuple):
    """Of a mask's vessels."""

    plane: Image8
    """[h, w] uint8 where they were traced: of every pixel, in a vessel or not, the kind of the
    nearest centre line."""
    of_points: Image8
    """[N] uint8: ARTERY or VEIN of each point of the paths."""


def vote(traced: Traced, artery: Plane) -> Kinds:
    """artery [h, w] float32 in [0, 1], how sure the network is of an artery and no vein, where the
    vessels were traced -> their kinds.

    Every segment between branch points and ends has one kind, so that it never changes it: the
    kinds that agree best with the pixels nearest to each segment, and with those of the segments
    that it meets.
    """
    segment, num = traced.paths.segment, len(traced.paths.start)
    if not num:
        return Kinds(np.full(traced.vessel.shape, VEIN, np.uint8), np.zeros(0, np.uint8))
    points = traced.paths.points
    rows, columns = (np.rint(part).astype(np.int64) // EVERY for part in (points.imag, points.real))
    vessel, seen = (one[::EVERY, ::EVERY].ravel() for one in (traced.vessel, artery))
    own = np.zeros(traced.vessel[::EVERY, ::EVERY].shape, np.int32)
    own[rows, columns] = segment + 1
    label = _nearest(own)
    pixels = np.flatnonzero(vessel.view(np.bool_))
    near, prob = label.ravel()[pixels] - 1, seen[pixels].clip(1e-6, 1 - 1e-6)
    odds = np.log(prob / (1 - prob)).clip(-SUREST, SUREST)
    lengths = arc_lengths(traced.paths, points)
    places = find_places(traced.paths, traced.forks, lengths, traced.depth)
    evidence = np.asarray(np.bincount(near, odds, num), np.float64)
    is_artery = agreed(evidence, *_joints(traced, places))
    kind = np.where(is_artery, ARTERY, VEIN).astype(np.uint8)
    plane = _enlarged(np.append(np.uint8(VEIN), kind), label, traced.vessel.shape)
    _mark_crossings(plane, traced, kind, places)
    return Kinds(plane, kind[segment])


def _nearest(label: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """label [h, w] int32, 0 where there is none -> everywhere that of the nearest that has one."""
    if not kernels.missing():
        return kernels.nearest_labels(label)
    lines = (label == 0).view(np.uint8)
    number = cv2.distanceTransformWithLabels(
        lines, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )[1]
    of_number = np.zeros(int(number.max()) + 1, np.int32)
    of_number[number[label > 0]] = label[label > 0]
    return of_number[number]


def _enlarged(kind: Image8, label: npt.NDArray[np.int32], shape: tuple[int, ...]) -> Image8:
    """kind [S + 1] of each label, label [h, w] -> of every pixel of this shape its kind, where a
    label stands for EVERY of EVERY rows."""
    height, width = shape
    pairs = (kind * np.uint16(257)).take(label).view(np.uint8)  # both bytes: two pixels beside
    return np.repeat(pairs, EVERY, axis=0)[:height, :width].copy()


def told_kinds(traced: Traced, kinds: Image8) -> Kinds:
    """kinds [H, W] uint8 of the mask's pixels, as a picture of kinds has them -> those of its
    vessels where they were traced; a segment has the kind of most of its points."""
    plane = np.asarray(field(kinds, traced, cv2.INTER_NEAREST), np.uint8)
    points, segment = traced.paths.points, traced.paths.segment
    at = plane[tuple(np.rint(part).astype(np.int64) for part in (points.imag, points.real))]
    num = len(traced.paths.start)
    more = np.bincount(segment, (at == ARTERY).astype(np.float64) - (at == VEIN), num)
    return Kinds(plane, np.where(more >= 0, ARTERY, VEIN).astype(np.uint8)[segment])


def _joints(traced: Traced, places: Places) -> tuple[Ints, Floats]:
    """-> pairs [P, 2] of segments that meet, and what it costs that their kinds differ [P]."""
    chord, half, _ = leaving(places, traced.paths, traced.points, traced.depth, traced.diameter)
    along = chord / np.maximum(np.abs(chord), 1e-9)
    order = np.argsort(places.place, kind="stable")
    pairs, costs = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for step in range(1, MOST_BRANCHES):
        one, other = order[:-step], order[step:]
        number = places.num_branches[places.place[one]]
        met = (places.place[one] == places.place[other]) & (number <= MOST_BRANCHES)
        one, other, number = one[met], other[met], number[met]
        cos = -(along[one] * along[other].conj()).real
        alike = np.minimum(half[one], half[other]) >= ALIKE * np.maximum(half[one], half[other])
        of_fork = FORK + STRAIGHT * ((cos > STRAIGHT_COS) & alike)
        costs.append(np.where(number > 3, ACROSS * (cos > ACROSS_COS), of_fork))
        pairs.append(np.stack([places.segment[one], places.segment[other]], axis=1))
    return np.concatenate(pairs), np.concatenate(costs)


def agreed(evidence: Floats, pairs: Ints, costs: Floats) -> Mask:
    """evidence [S] (above 0 for yes), pairs [P, 2] and what it costs that their answers differ [P]
    -> the answers [S] bool that lose least of the evidence and of these costs together.

    A smallest cut: Greig, Porteous and Seheult 1989, Journal of the Royal Statistical Society B 51.
    """
    num = len(evidence)
    yes, no = num, num + 1  # the source and the sink
    kept = (costs > 0) & (pairs[:, 0] != pairs[:, 1])
    one, other = pairs[kept].T
    number = np.arange(num)
    first = np.concatenate([np.where(evidence > 0, yes, number), one, other])
    second = np.concatenate([np.where(evidence > 0, number, no), other, one])
    room = np.concatenate([np.abs(evidence), costs[kept], costs[kept]]) * TO_INTEGERS
    whole = np.rint(room).astype(np.int32)
    graph = sparse.coo_array((whole, (first, second)), (num + 2, num + 2)).tocsr()
    left = graph - csgraph.maximum_flow(graph, yes, no).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = np.zeros(num + 2, np.bool_)
    reached[csgraph.breadth_first_order(left, yes, return_predecessors=False)] = True
    return reached[:num]


def _mark_crossings(plane: Image8, traced: Traced, kind: Image8, places: Places) -> None:
    """CROSSING in the discs where two branches of each kind meet."""
    ends = traced.paths.points[places.first(traced.paths)]
    halves = nearest(traced.depth, ends)
    num = len(places.num_branches)
    num_arteries = np.bincount(places.place, kind[places.segment] == ARTERY, num)
    for place in np.flatnonzero((places.num_branches == 4) & (num_arteries == 2)):
        here = places.place == place
        at, half = ends[here], float(halves[here].max())
        middle = at.mean()
        radius = max(CROSSING_REACH * half, float(np.abs(at - middle).max()) + half)
        cv2.circle(plane, (round(middle.real), round(middle.imag)), round(radius), CROSSING, -1)


def field(plane: npt.NDArray[Any], traced: Traced, how: int = cv2.INTER_LINEAR) -> npt.NDArray[Any]:
    """plane [S, S] of the mask's px -> [h, w] where its vessels were traced; `how` OpenCV takes
    what lies between pixels."""
    height, width = traced.vessel.shape
    top, left = (at - BORDER_PX for at in traced.corner)
    if traced.scale == 1:  # not a pixel lies between two
        part = plane[max(top, 0) : top + height, max(left, 0) : left + width]
        if part.shape == (height, width):
            return part
        found = np.zeros((height, width), plane.dtype)
        found[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
        return found
    shift = traced.to_mask(np.zeros(1, np.complex128))[0]
    back = np.array([[1 / traced.scale, 0, shift.real], [0, 1 / traced.scale, shift.imag]])
    flags = how | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(plane, back, (width, height), flags=flags), plane.dtype)


def is_kind(kinds: Kinds, kind: int, traced: Traced) -> tuple[Mask, Image8]:
    """-> which points [N] of the paths are of a kind, and which vessel px [h, w] uint8; a crossing
    is of both."""
    is_of = np.zeros(256, np.uint8)
    is_of[[kind, CROSSING]] = 1
    of_kind = np.asarray(cv2.LUT(kinds.plane, is_of), np.uint8)
    return kinds.of_points == kind, traced.vessel & of_kind
