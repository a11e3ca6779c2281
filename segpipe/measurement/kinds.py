"""Arteries and veins: what the network says of each pixel, and the vessel that it belongs to."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.measurement.branching import find_places
from segpipe.measurement.skeleton import arc_lengths, nearest
from segpipe.measurement.traced import Traced

OUTSIDE, ARTERY, VEIN, CROSSING, BACKGROUND = range(5)
"""Of a picture of kinds; CROSSING: an artery and a vein, one above the other."""
EVERY = 2  # px: the nearest centre line is found for every other pixel of every other row
CROSSING_REACH = 1.5  # half widths from where four branches meet


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

    Every segment between branch points and ends has one kind: that which the mean over the pixels
    that are nearest to it says. So a segment never changes its kind.
    """
    segment, num = traced.paths.segment, len(traced.paths.start)
    if not num:
        return Kinds(np.full(traced.vessel.shape, VEIN, np.uint8), np.zeros(0, np.uint8))
    points = traced.paths.points
    rows, columns = (np.rint(part).astype(np.int64) // EVERY for part in (points.imag, points.real))
    vessel = traced.vessel[::EVERY, ::EVERY].view(np.bool_)
    lines = np.ones(vessel.shape, np.uint8)
    lines[rows, columns] = 0
    label = cv2.distanceTransformWithLabels(
        lines, cv2.DIST_L2, cv2.DIST_MASK_3, labelType=cv2.DIST_LABEL_PIXEL
    )[1]
    of_label = np.zeros(len(rows) + 1, np.int64)
    of_label[label[rows, columns]] = segment
    near = of_label[label[vessel]]
    sure = np.bincount(near, artery[::EVERY, ::EVERY][vessel], num)
    kind = np.where(sure >= np.bincount(near, minlength=num) / 2, ARTERY, VEIN).astype(np.uint8)
    size = traced.vessel.shape[::-1]
    few = kind[of_label][label]
    plane = np.asarray(cv2.resize(few, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    _mark_crossings(plane, traced, kind)
    return Kinds(plane, kind[segment])


def _mark_crossings(plane: Image8, traced: Traced, kind: Image8) -> None:
    """CROSSING in the discs where two branches of each kind meet."""
    paths = traced.paths
    lengths = arc_lengths(paths, paths.points)
    places = find_places(paths, traced.forks, lengths, traced.depth)
    for place in np.flatnonzero(places.num_branches == 4):
        of = places.place == place
        if np.count_nonzero(kind[places.segment[of]] == ARTERY) != 2:
            continue
        ends = np.where(
            places.at_last[of] == 1, paths.last[places.segment[of]], paths.start[places.segment[of]]
        )
        at = paths.points[ends]
        middle, half = at.mean(), float(nearest(traced.depth, at).max())
        radius = max(CROSSING_REACH * half, float(np.abs(at - middle).max()) + half)
        cv2.circle(plane, (round(middle.real), round(middle.imag)), round(radius), CROSSING, -1)


def picture(mask: Image8, plane: Image8) -> Image8:
    """mask [H, W] uint8 classes, plane [H, W] uint8 kinds -> [H, W] uint8: its vessels' kinds."""
    table = np.full((3, CROSSING + 1), BACKGROUND, np.uint8)
    table[0] = OUTSIDE
    table[1, :] = np.arange(CROSSING + 1)
    return np.asarray(table[mask, plane], np.uint8)


def field(plane: Plane, traced: Traced) -> Plane:
    """plane [S, S] float32 of the mask's px -> [h, w] float32 where its vessels were traced."""
    height, width = traced.vessel.shape
    shift = traced.to_mask(np.zeros(1, np.complex128))[0]
    back = np.array([[1 / traced.scale, 0, shift.real], [0, 1 / traced.scale, shift.imag]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(plane, back, (width, height), flags=how), np.float32)


def is_kind(kinds: Kinds, kind: int, traced: Traced) -> tuple[Mask, Image8]:
    """-> which points [N] of the paths are of a kind, and which vessel px [h, w] uint8; a crossing
    is of both."""
    of_kind = (kinds.plane == kind) | (kinds.plane == CROSSING)
    return kinds.of_points == kind, traced.vessel & of_kind.view(np.uint8)
