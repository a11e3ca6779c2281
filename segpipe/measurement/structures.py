"""Maps of a canvas -> arteries, veins, the optic disc, and what is measured of each.

Columns of arteries and veins have the names of those of all vessels behind `artery_` and `vein_`;
those of a zone have its name before. docs/columns.md has them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from segpipe import kernels
from segpipe.data.arrays import Image8, Plane, StructureMaps
from segpipe.data.canvas import Geometry
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.fov import fov_box
from segpipe.measurement import kinds, vessels
from segpipe.measurement.branching import Branchings
from segpipe.measurement.curvature import Bends
from segpipe.measurement.disc import Disc, find_disc, laterality, offset
from segpipe.measurement.kinds import ARTERY, VEIN, Kinds
from segpipe.measurement.names import KINDS, OF_KIND, OF_ZONE, ZONES
from segpipe.measurement.traced import BORDER_PX, Traced, trace_mask
from segpipe.measurement.vessels import Measurements
from segpipe.measurement.zones import (
    ARTERIOLES,
    LARGEST,
    LEAST_SHARE,
    VENULES,
    Ring,
    equivalent,
    vessel_widths,
)

BESIDE_VESSELS = np.full(256, kinds.BACKGROUND, np.uint8)  # what a mask's class is in the picture
BESIDE_VESSELS[OUTSIDE] = kinds.OUTSIDE
OfLines = Callable[[Traced, Bends, Branchings, float, float], dict[str, Any]]
NAMES = {"artery": ARTERY, "vein": VEIN}


class Structures(NamedTuple):
    """Of one canvas."""

    traced: Traced | None
    """None without a field of view."""
    mask: Image8
    """[S, S] uint8 classes of the canvas."""
    kinds: Kinds | None
    plane: Image8
    """[S, S] uint8: of every pixel of the canvas the kind of the nearest centre line."""
    disc: Disc | None
    """In px of the canvas."""


def find(
    score: Plane, maps: StructureMaps, fov: Image8, geometry: Geometry, threshold: float
) -> Structures:
    """score [S, S] float32, its maps, fov [S, S] uint8 (255 inside) on the canvas -> its vessels by
    kind, and its disc."""
    mask = vessels.canvas_mask(score, fov, threshold)
    traced = trace_mask(mask)
    plane = np.full(mask.shape, VEIN, np.uint8)
    diameter = max(geometry.scaled_height, geometry.scaled_width)
    disc = find_disc(maps.disc, fov, diameter)
    if traced is None:
        return Structures(None, mask, None, plane, disc)
    found = kinds.vote(traced, kinds.field(maps.artery, traced))
    inner = found.plane[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    if traced.scale != 1:
        size = tuple(round(side / traced.scale) for side in inner.shape[::-1])
        inner = np.asarray(cv2.resize(inner, size, interpolation=cv2.INTER_NEAREST))
    top, left = traced.corner
    place = plane[top : top + inner.shape[0], left : left + inner.shape[1]]
    place[:] = inner[: place.shape[0], : place.shape[1]]
    return Structures(traced, mask, found, plane, disc)


def native_kinds(plane: Image8, mask: Image8, geometry: Geometry) -> Image8:
    """plane [S, S] uint8 of kinds on the canvas, mask [H, W] uint8 classes of the photograph ->
    [H, W] uint8: 0 outside the field, 1 artery, 2 vein, 3 crossing, 4 background.

    What is vessel there is vessel in the mask: each pixel has the kind of the canvas's nearest one.
    """
    if not kernels.missing():
        return kernels.native_kinds(plane, mask, np.asarray(geometry.to_list(), np.int32))
    return plain_native_kinds(plane, mask, geometry)


def plain_native_kinds(plane: Image8, mask: Image8, geometry: Geometry) -> Image8:
    """native_kinds by OpenCV."""
    g = geometry
    box = plane[: g.scaled_height, : g.scaled_width]
    size = g.box_width, g.box_height
    enlarged = np.asarray(cv2.resize(box, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    picture = np.asarray(cv2.LUT(mask, BESIDE_VESSELS), np.uint8)
    part = np.s_[g.top : g.top + g.box_height, g.left : g.left + g.box_width]
    cv2.copyTo(enlarged, (mask[part] == VESSEL).view(np.uint8), picture[part])
    return picture


def disc_columns(found: Structures, geometry: Geometry, orientation: int) -> dict[str, Any]:
    """Where the disc is, and which eye that makes it."""
    if found.disc is None or found.traced is None:
        return {"disc": "none"}
    disc = found.disc.in_photograph(geometry)
    right, down = offset(found.disc, fov_box(found.mask != 0))
    return {
        "disc": "found",
        "disc_x_px": disc.x,
        "disc_y_px": disc.y,
        "disc_height_px": disc.height,
        "disc_width_px": disc.width,
        "disc_confidence": disc.confidence,
        "disc_right_of_middle": right,
        "disc_below_middle": down,
        "disc_laterality": laterality(right, down, orientation),
    }


def of_all_vessels(found: Structures, zoom: float) -> Measurements:
    """What `vessels.measure` tells of the canvas's mask, which is not traced again."""
    if found.traced is None:
        return vessels.measure(found.mask, zoom)
    return vessels.measure_traced(found.traced, found.mask, zoom)


def measure(found: Structures, zoom: float) -> dict[str, Any]:
    """Columns of arteries and veins, of the zones around the disc, and of the central vessels.

    `zoom` is px of the photograph for one of the canvas.
    """
    traced = found.traced
    if traced is None or found.kinds is None:
        return {"zone_note": "no field of view"}
    masks = {name: kinds.is_kind(found.kinds, kind, traced) for name, kind in NAMES.items()}
    of_kinds = {name: traced.only(*of_kind) for name, of_kind in masks.items()}
    bends = traced.bends  # whole segments are of a kind, and so is what is told of them
    branchings = {name: part.branchings for name, part in of_kinds.items()}
    shares = _shares(found)
    native, area = traced.diameter / traced.scale * zoom, float(np.count_nonzero(traced.fov))
    columns: dict[str, Any] = {}
    for name, part in of_kinds.items():
        own = bends.only(masks[name][0]), branchings[name]
        share = shares[NAMES[name]]
        values = _of_part(part, *own, share, area, native, vessels.of_lines)
        columns |= {f"{name}_{column}": values.get(column) for column in OF_KIND}
    if found.disc is None:
        return columns | {"zone_note": "no optic disc"}
    whole = np.ones(len(traced.points), np.bool_), traced.vessel
    branchings["vessel"] = traced.branchings
    notes = []
    for zone, edges in ZONES.items():
        ring = Ring(traced, found.disc, edges)
        if ring.share < LEAST_SHARE:
            notes.append(f"{zone[-1].upper()}: {ring.share:.0%} of it in the field of view")
            continue
        area = float(np.count_nonzero(ring.plane))
        holds, widths = ring.holds(traced.points), {}
        for name, (points, vessel) in {"vessel": whole, **masks}.items():
            inside = traced.only(points & holds)
            share = cv2.countNonZero(vessel[ring.box] & ring.plane.view(np.uint8)) / area
            near = branchings[name].only(ring.holds(branchings[name].at))
            own = bends.only(points & holds), near
            values = _of_part(inside, *own, share, area, native, vessels.of_part)
            columns |= {f"{zone}_{name}_{column}": values.get(column) for column in OF_ZONE}
            if name != "vessel" and zone == "zone_b":
                widths[name] = vessel_widths(inside, ring)
        if widths:
            columns |= _central(widths, zoom / traced.scale, found.disc.diameter * traced.scale)
            few = [
                f"{len(widths[name])} of {LARGEST} {many}"
                for name, many in KINDS.items()
                if len(widths[name]) < LARGEST
            ]
            notes += [f"B: {', '.join(few)}"] if few else []
    return columns | {"zone_note": "; ".join(notes) or None}


def _shares(found: Structures) -> dict[int, float]:
    """By kind the share of the field that its vessels take, in pixels of the mask; a crossing is of
    both."""
    vessel, field = found.mask == VESSEL, cv2.countNonZero(found.mask)
    artery, vein, crossing = (
        np.count_nonzero(vessel & (found.plane == kind)) for kind in (ARTERY, VEIN, kinds.CROSSING)
    )
    return {ARTERY: (artery + crossing) / field, VEIN: (vein + crossing) / field}


def _of_part(
    part: Traced,
    bends: Bends,
    branchings: Branchings,
    share: float,
    area: float,
    native: float,
    of: OfLines,
) -> dict[str, Any]:
    """Of some of the vessels, which take this share of an area of so many px^2; what is NaN is left
    out."""
    values = {"density": share, "length_density": 0.0, "num_branch_points": 0}
    if len(part.paths.start):
        values |= of(part, bends, branchings, area, native)
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _central(widths: dict[str, np.ndarray[Any, Any]], zoom: float, disc: float) -> dict[str, Any]:
    """Equivalents of the central artery and vein; `disc`: px that it is wide where they were
    measured."""
    crae = equivalent(widths["artery"], ARTERIOLES)
    crve = equivalent(widths["vein"], VENULES)
    values = {
        "crae_px": crae * zoom,
        "crae_disc_diameters": crae / disc,
        "crve_px": crve * zoom,
        "crve_disc_diameters": crve / disc,
        "avr": crae / crve,
    }
    return {name: value for name, value in values.items() if not math.isnan(value)}
