"""A mask -> measurements of its vessels; a photograph -> hints at its quality.

Vessels are measured where the field of view is 540 px wide, whatever the photograph's size, and
told in the photograph's px and in field diameters. Give the mask that the network made, at its
working diameter: one that was reduced below it has lost its thinnest vessels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.canvas import scale_to
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.fov import fov_box

DIAMETER = 540.0  # px of the field where vessels are measured: DRIVE's, at which they are drawn
COVERED = 85  # of 255: a third. At a half, lines a pixel wide break where they lie between pixels
HALF = 127  # of 255: a soft field's edge
LEAST_LENGTH = 0.02  # diameters from end to end of a segment whose tortuosity is told: 11 px
SPECK = 5e-5  # squared diameters: what is less than LEAST_LENGTH of the thinnest vessel (0.0025)
SPUR_PX = 3.0  # a branch that leaves its vessel's wall by less is the wall's roughness
SMOOTHING_PX = 1.5  # sigma along a path: more than the stairs of pixels, less than any bend
REACH = 3  # sigmas of that smoothing
PROFILE = 17  # samples across a vessel
ALONG = 4  # points before and behind, from which its direction is taken
EVERY = 4  # points of a path at which it is sampled: calibres change slowly
CELL_PX = 2  # boxes are counted in cells of so many px
BOXES = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # sides in cells: from a usual calibre to an eighth of 540
FEWEST_ACROSS = 4  # boxes over the vessels' extent
FEWEST_SIDES = 3  # of boxes, through which a line is fitted
OFFSETS = 4  # places of the grid of boxes along each axis
ROUNDS = 10  # of the fit: five bring it to four digits

FLAT = 0.004  # local contrast: the flattest hundredth of DRIVE's training photographs has as much
DARK, BRIGHT = 16, 250  # grey levels of green beyond which vessels drown in noise or saturation
LOCAL_PX = 34  # side of a neighbourhood: a sixteenth of the diameter
RIM_PX = 12  # the frame's edge reaches so far into the field under the widest blur

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Points = npt.NDArray[np.complex128]
NAN = math.nan


# ---- vessels


@dataclass(frozen=True)
class Measurements:
    """Of one mask. Lengths end in `_px` and have a twin in field diameters; NaN is unmeasurable."""

    measure_note: str | None
    """Why something is NaN, else None."""
    vessel_density: float
    """Vessel / field of view, in pixels of the mask."""
    field_diameter_px: float
    """The field's larger extent in the photograph."""
    length_density_per_px: float = NAN
    """Length of the vessels' centre lines / area of the field."""
    length_density: float = NAN
    """The same per diameter."""
    calibre_mean_px: float = NAN
    """Width of the vessels, averaged along their centre lines."""
    calibre_mean: float = NAN
    calibre_std_px: float = NAN
    """Standard deviation of the width along the centre lines."""
    calibre_std: float = NAN
    fractal_dimension: float = NAN
    """By box counting on the vessels, from 0 to 2."""
    tortuosity: float = NAN
    """Length of segments between branch points and ends / distance of their ends; 1 is straight."""
    num_branch_points: int = 0
    num_components: int = 0


def measure(mask: Image8, zoom: float = 1.0) -> Measurements:
    """mask [H, W] uint8 classes -> what its vessels are like.

    `zoom` is px of the photograph for one of the mask, where the mask is that of a canvas.
    """
    fov = mask != OUTSIDE
    if not fov.any():
        return Measurements("no field of view", NAN, NAN)
    top, left, bottom, right = fov_box(fov)
    extent = max(bottom - top, right - left)
    scale = scale_to(extent, DIAMETER)
    area = np.count_nonzero(fov)
    density = float(np.count_nonzero(mask == VESSEL) / area)
    diameter, native = extent * scale, extent * zoom  # px where it is measured, px as it is told
    coverage = _resample(mask[top:bottom, left:right] == VESSEL, scale)
    vessel, num_components = _without_specks(coverage >= COVERED)
    if not num_components:
        return Measurements("no vessel", density, native, 0.0, 0.0)
    depth = np.asarray(cv2.distanceTransform(vessel, cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)
    paths, forks = trace(_without_spurs(thin(vessel), depth))
    points = smooth(paths, SMOOTHING_PX)
    lengths, chords = _lengths(paths, points), _chords(paths, points)
    calibres, weights = _calibres(paths, points, coverage, depth)
    mean, std = _mean_and_std(calibres, weights)
    long = chords >= LEAST_LENGTH * diameter
    per_px = float(lengths.sum() / (area * scale**2))
    dimension = fractal_dimension(vessel)
    missing = {
        "no calibre away from branch points": not len(calibres),
        "too small for box counting": math.isnan(dimension),
        "no segment is long enough": not long.any(),
    }
    return Measurements(
        measure_note="; ".join(note for note, is_so in missing.items() if is_so) or None,
        vessel_density=density,
        field_diameter_px=native,
        length_density_per_px=per_px * diameter / native,
        length_density=per_px * diameter,
        calibre_mean_px=mean / diameter * native,
        calibre_mean=mean / diameter,
        calibre_std_px=std / diameter * native,
        calibre_std=std / diameter,
        fractal_dimension=dimension,
        tortuosity=float(lengths[long].sum() / chords[long].sum()) if long.any() else NAN,
        num_branch_points=_num_branch_points(paths, forks, lengths, depth),
        num_components=num_components,
    )


def _resample(vessel: Mask, scale: float) -> Image8:
    """vessel [H, W] bool -> how much of each px is covered [h, w] uint8 in 0 to 255, and 2 px more
    on each side."""
    coverage = vessel.view(np.uint8) * np.uint8(255)
    if scale != 1.0:
        height, width = (max(1, round(side * scale)) for side in vessel.shape)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        coverage = np.asarray(cv2.resize(coverage, (width, height), interpolation=how), np.uint8)
    return np.pad(coverage, 2)


def _without_specks(vessel: Mask) -> tuple[Image8, int]:
    """vessel [h, w] bool -> its 8-connected components of a vessel's area [h, w] uint8, their
    number."""
    large = vessel.astype(np.uint8)
    num, label = cv2.connectedComponents(large, connectivity=8, ltype=cv2.CV_32S)
    pixels = np.flatnonzero(vessel)
    component = np.asarray(label).ravel()[pixels]
    kept = np.bincount(component, minlength=num) >= SPECK * DIAMETER**2
    large.ravel()[pixels[~kept[component]]] = 0
    return large, int(kept.sum())


# ---- centre lines


def thin(vessel: Image8) -> Mask:
    """vessel [h, w] uint8, 0 or 1, empty along its border -> its centre lines [h, w] bool.

    Algorithm A1 of Guo and Hall 1989, pixel by pixel what scikit-image's `thin` does in 100 ms for
    a mask of DRIVE's size; this takes 5. Zhang and Suen's, its `skeletonize`, takes 5 too, but eats
    up to half of a diagonal line whose width is even; Lee's takes 16.
    """
    width = vessel.shape[1]
    around = (-width - 1, -width, 1 - width, 1, width + 1, width, width - 1, -1)
    left = vessel.flatten()
    layers = _layers(vessel)  # a pixel cannot go before those between it and the background
    touched = np.zeros(left.size, np.int32)  # the step in which something beside a pixel went
    pixels, step = np.zeros(0, np.int64), FIRST_STEP
    while True:
        if layers:
            touched[layers[-1]] = step
            pixels = np.append(pixels, layers.pop())
        # what stayed in a step of this kind stays until something beside it goes
        open_ = pixels[touched.take(pixels) >= step - 2]
        if not len(open_) and not layers:
            return left.view(np.bool_).reshape(vessel.shape)
        bits = left.take(open_ + around[0])
        for bit, beside in enumerate(around[1:], 1):
            bits |= left.take(open_ + beside) << bit
        gone = open_[~_kept()[step % 2].take(bits)]
        left[gone] = 0
        for beside in around:
            touched[gone + beside] = step
        pixels = pixels[left.view(np.bool_).take(pixels)]
        step += 1


FIRST_STEP = 4  # even, and none of two before it is the 0 of pixels that nothing touched


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
    """skeleton [H, W] bool, empty along its border -> its segments in path order, and x + iy of the
    pixels where three or more of them meet."""
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

    One root is joined to both ends of every path and to a point of every ring: a walk into the
    depth from there takes each from end to end.
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
    root = np.stack([np.full(len(starts), num_nodes), starts], axis=1)
    both = np.concatenate([edges, edges[:, ::-1], root])
    graph = sparse.coo_array(
        (np.ones(len(both)), tuple(both.T)), (num_nodes + 1, num_nodes + 1)
    ).tocsr()
    order = csgraph.depth_first_order(graph, num_nodes, return_predecessors=False)
    return np.asarray(order[1:], np.int64)


def _without_spurs(skeleton: Mask, depth: Plane) -> Mask:
    """Without the branches that hardly leave their vessel, whose half width is `depth` [h, w]."""
    paths, _ = trace(skeleton)
    if not len(paths.start):
        return skeleton
    fork = paths.points[np.where(paths.forks[:, 0], paths.start, paths.last)]
    loose = paths.forks[:, 0] != paths.forks[:, 1]
    spur = loose & (_lengths(paths, paths.points) < _at(depth, fork) + SPUR_PX)
    gone = spur[paths.segment]
    gone[paths.start[paths.forks[:, 0]]] = False
    gone[paths.last[paths.forks[:, 1]]] = False
    kept = skeleton.copy()
    kept[_pixels(paths.points[gone])] = False
    return kept


def _pixels(points: Points) -> tuple[Ints, Ints]:
    """-> rows, columns of the nearest pixels."""
    return np.rint(points.imag).astype(np.int64), np.rint(points.real).astype(np.int64)


def _at(plane: Plane, points: Points) -> Floats:
    return plane[_pixels(points)].astype(np.float64)


def smooth(paths: Paths, sigma: float) -> Points:
    """The paths' points after a Gaussian of `sigma` points along each path.

    Beyond its ends a path goes on as its reflection through them, so that ends stay and straight
    lines stay straight; a ring goes round.
    """
    if not len(paths.points):
        return paths.points
    reach = math.ceil(REACH * sigma)
    padded = paths.last - paths.start + 1 + 2 * reach
    first, last = np.repeat(paths.start, padded), np.repeat(paths.last, padded)
    ring = np.repeat(paths.closed, padded)
    at = first + np.arange(len(first)) - np.repeat(np.cumsum(padded) - padded, padded) - reach
    mirror = at.clip(first, last)
    inner = np.where(ring, first + (at - first) % (last - first + 1), 2 * mirror - at)
    points = paths.points[inner.clip(first, last)]
    outside = ~ring & (mirror != at)
    points[outside] = 2 * paths.points[mirror[outside]] - points[outside]
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smoothed = np.convolve(points, weights / weights.sum(), "same")
    return np.asarray(smoothed[mirror == at], np.complex128)


def _chords(paths: Paths, points: Points) -> Floats:
    """[S] from the first point to the last; 0 for rings, which have none."""
    return np.where(paths.closed, 0.0, np.abs(points[paths.last] - points[paths.start]))


def _lengths(paths: Paths, points: Points) -> Floats:
    """[S] along the points."""
    if not len(points):
        return np.zeros(0)
    steps = np.abs(np.diff(points, append=0))
    closing = np.abs(points[paths.last] - points[paths.start])
    steps[paths.last] = np.where(paths.closed, closing, 0)
    return np.add.reduceat(steps, paths.start)


def _num_branch_points(paths: Paths, forks: Points, lengths: Floats, depth: Plane) -> int:
    """Places where three or more vessels meet.

    Forks whose discs within the vessel overlap are one place: thinning parts a crossing into two,
    and a junction into neighbouring pixels. What comes back to the same place is a hole's rim.
    """
    if not len(forks):
        return 0
    ends = np.stack([paths.points[paths.start], paths.points[paths.last]], axis=1)
    near = paths.forks.all(axis=1) & (lengths < _at(depth, ends).sum(axis=1))
    width = depth.shape[1]
    number = (forks.imag * width + forks.real).astype(np.int64)  # ascending, as pixels were found
    place = np.searchsorted(number, (ends.imag * width + ends.real).astype(np.int64))
    joined = place[near]
    graph = sparse.coo_array((np.ones(len(joined)), tuple(joined.T)), (len(forks), len(forks)))
    num, label = csgraph.connected_components(graph, directed=False)
    at = np.where(paths.forks, label[np.where(paths.forks, place, 0)], -1)
    leaving = at[paths.forks & (at[:, :1] != at[:, 1:])]
    return int(np.count_nonzero(np.bincount(leaving, minlength=num) >= 3))


# ---- calibre


def _calibres(
    paths: Paths, points: Points, coverage: Image8, depth: Plane
) -> tuple[Floats, Floats]:
    """-> widths of the vessel in px at points of its centre line, the length that each stands for.

    Twice the distance to the nearest background pixel is up to a pixel off, by the vessel's angle
    and by where its walls lie among the pixels. So the distance only tells how far to look: the
    width is the covered length of the profile across the centre line, which has no bias. Where
    other vessels join, within the distance from a branch point, none is told.
    """
    segment = paths.segment
    start, last = paths.start[segment], paths.last[segment]
    number = np.arange(len(points))
    along = points[np.minimum(number + ALONG, last)] - points[np.maximum(number - ALONG, start)]
    steps = np.abs(points[np.minimum(number + 1, last)] - points[np.maximum(number - 1, start)])
    apart = along != 0
    for end, is_fork in zip((start, last), paths.forks.T, strict=True):
        reach = np.where(is_fork[segment], _at(depth, points[end]), 0)
        apart &= np.abs(points - points[end]) >= reach + 1
    some = np.flatnonzero(apart)[::EVERY]
    if not len(some):
        return np.zeros(0), np.zeros(0)
    half = 1.25 * _at(depth, points[some]) + 1.5
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


def _mean_and_std(values: Floats, weights: Floats) -> tuple[float, float]:
    if not len(values):
        return NAN, NAN
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))


# ---- fractal dimension


def fractal_dimension(vessel: Image8) -> float:
    """vessel [h, w] uint8, 0 or 1 -> its box-counting dimension: how the number of boxes that hold
    vessel falls with their side.

    Boxes are as wide as a usual vessel at least, since in smaller ones any vessel is a surface, and
    a quarter of the vessels' extent at most. Over all places of the grid a line of length e meets
    e / side + 1 boxes on average and a square the square of that: the 1 is boxes that are cut by an
    end. So N^(1/D) - 1, and not N^(1/D), goes with 1 / side, and D is the number for which it does.
    NaN where the vessels' extent is below 32 px.
    """
    cells = _cells(vessel)
    extent = max(cv2.boundingRect(cells)[2:])
    sides = [side for side in BOXES if side * FEWEST_ACROSS <= extent]
    if len(sides) < FEWEST_SIDES:
        return NAN
    padded, counts = np.pad(cells, sides[-1]), []
    for side in sides:
        near = padded[sides[-1] - side :, sides[-1] - side :]
        any_in = cv2.dilate(near, np.ones((side, side), np.uint8), anchor=(0, 0)).view(np.bool_)
        places = sorted({side * place // OFFSETS for place in range(OFFSETS)})
        num = [np.count_nonzero(any_in[a::side, b::side]) for a in places for b in places]
        counts.append(np.mean(num))
    size = np.log(sides) - np.log(sides).mean()
    dimension = 1.5
    for _ in range(ROUNDS):
        across = np.asarray(counts) ** (1 / dimension) - 1
        dimension *= float(-(size @ np.log(across)) / (size @ size))  # least squares
    return dimension


def _cells(vessel: Image8) -> Image8:
    height, width = (side // CELL_PX * CELL_PX for side in vessel.shape)
    rows = vessel[:height:CELL_PX, :width] | vessel[1:height:CELL_PX, :width]
    return rows[:, ::CELL_PX] | rows[:, 1::CELL_PX]


# ---- quality hints


@dataclass(frozen=True)
class Quality:
    """How well a photograph shows its vessels: hints, which reject nothing. NaN without a field."""

    focus: float
    """Energy of green's structures between 1 and 2 px / between 2 and 4 px; 0 and more."""
    exposure: float
    """Mean of green in the field, 0 to 1."""
    underexposed_fraction: float
    """Share of the field whose green is below DARK."""
    overexposed_fraction: float
    """Share of the field whose green is BRIGHT or above."""
    readable_fraction: float
    """Share of the field with light and contrast enough to show vessels."""


def quality(canvas: Image8, fov: Image8) -> Quality:
    """canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 (255 inside), the field about DIAMETER wide.

    Vessels are darkest in green. Both energies are of differences of Gaussians (Burt and Adelson
    1983), whose ratio neither exposure nor contrast changes; blur takes the finer one first.
    """
    inside = fov > HALF
    if not inside.any():
        return Quality(*[NAN] * 5)
    green = canvas[..., 1]
    levels = cv2.calcHist([green], [0], inside.view(np.uint8), [256], [0, 256]).ravel()
    shares = levels.astype(np.float64) / levels.sum()
    fine = cv2.GaussianBlur(green.astype(np.float32), (7, 7), 1.0)
    middle = cv2.GaussianBlur(fine, (11, 11), math.sqrt(3))  # variances add: sigma 2
    half = np.ascontiguousarray(middle[::2, ::2], np.float32)
    coarse = cv2.GaussianBlur(half, (11, 11), math.sqrt(3))  # of px twice as large: sigma 4
    coarser_band = np.asarray(half - coarse, np.float32)
    core = cv2.blur(inside.view(np.uint8) * np.uint8(255), (2 * RIM_PX + 1,) * 2) == 255
    bands = (fine - middle)[core], coarser_band[core[::2, ::2]]
    finer, coarser = (float(np.mean(band**2)) if band.size else NAN for band in bands)
    return Quality(
        focus=finer / coarser if coarser else NAN,
        exposure=float(shares @ np.arange(256)) / 255,
        underexposed_fraction=float(shares[:DARK].sum()),
        overexposed_fraction=float(shares[BRIGHT:].sum()),
        readable_fraction=_readable(half, coarser_band, core[::2, ::2]),
    )


def _readable(green: Plane, band: Plane, inside: Mask) -> float:
    """Share of `inside` [h, w] where the mean of `green` lies between DARK and BRIGHT, and the root
    mean square of `band`, the scale of vessels, is at least FLAT of that mean; both around each px.
    """
    if not inside.any():
        return NAN
    share = inside.astype(np.float32)
    size = (LOCAL_PX // 2,) * 2
    around = np.maximum(cv2.blur(share, size), 1e-6)
    mean = cv2.blur(green * share, size) / around
    power = cv2.blur(band**2 * share, size) / around
    readable = (mean >= DARK) & (mean <= BRIGHT) & (power >= (FLAT * mean) ** 2)
    return float(readable[inside].mean())
