"""A mask -> measurements of its vessels.

Vessels are measured in the mask's own pixels where its field of view is 500 to 1,024 px wide; a
larger one is reduced to that and a smaller one enlarged. They are told in the photograph's px and
in field diameters. Give the mask that the network made, at its working diameter: one that was
reduced below it has lost its thinnest vessels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from segpipe.data.arrays import Image8, Plane
from segpipe.data.canvas import Geometry
from segpipe.data.classes import OUTSIDE, VESSEL, classes_of
from segpipe.measurement.branching import Branchings
from segpipe.measurement.calibre import mean_and_std
from segpipe.measurement.curvature import Bends
from segpipe.measurement.fractal import CELLS, fractal_dimension
from segpipe.measurement.quality import HALF
from segpipe.measurement.skeleton import Floats, arc_lengths, chord_lengths, nearest
from segpipe.measurement.traced import Traced, trace_mask

LEAST_LENGTH = 0.02  # diameters from end to end of a segment whose tortuosity is told


@dataclass(frozen=True)
class Measurements:
    """Of one mask. Lengths end in `_px` and have a twin in field diameters; NaN is unmeasurable."""

    measure_note: str | None
    """Why something but the branching angle is NaN, else None."""
    vessel_density: float
    """Vessel / field of view, in pixels of the mask."""
    field_diameter_px: float
    """The field's larger extent in the photograph."""
    length_density_per_px: float = math.nan
    """Length of the vessels' centre lines / area of the field."""
    length_density: float = math.nan
    """The same per diameter."""
    calibre_mean_px: float = math.nan
    """Width of the vessels, averaged along their centre lines."""
    calibre_mean: float = math.nan
    calibre_std_px: float = math.nan
    """Standard deviation of the width along the centre lines."""
    calibre_std: float = math.nan
    fractal_dimension: float = math.nan
    """By box counting on the vessels, from 0 to 2."""
    tortuosity: float = math.nan
    """Length of segments between branch points and ends / distance of their ends; 1 is straight."""
    total_squared_curvature_per_px: float = math.nan
    """Integral of squared curvature along the vessels' centre lines, 1/px; 0 is straight."""
    total_squared_curvature: float = math.nan
    """The same in 1/diameter."""
    mean_squared_curvature_per_px2: float = math.nan
    """The same over the length of the centre lines, 1/px^2."""
    mean_squared_curvature: float = math.nan
    """The same in 1/diameter^2."""
    branch_angle_mean_deg: float = math.nan
    """Mean angle between the two daughters at branch points of three, degrees; NaN of none."""
    num_branch_points: int = 0
    num_components: int = 0


def measure(mask: Image8, zoom: float = 1.0) -> Measurements:
    """mask [H, W] uint8 classes (0 outside the field, 1 vessel, 2 background) -> its Measurements.

    `zoom` is px of the photograph for one of the mask, above 0: 1 for a mask of the photograph's
    own size, another where the mask is that of a canvas.
    """
    traced = trace_mask(mask)
    if traced is None:
        return Measurements("no field of view", math.nan, math.nan)
    return measure_traced(traced, mask, zoom)


def measure_traced(traced: Traced, mask: Image8, zoom: float) -> Measurements:
    """What `measure` tells of a mask [H, W] that was traced."""
    area = int(np.count_nonzero(mask != OUTSIDE))
    density = float(np.count_nonzero(mask == VESSEL) / area)
    native = traced.diameter / traced.scale * zoom
    if not traced.num_components:
        return Measurements("no vessel", density, native, 0.0, 0.0)
    found = of_lines(traced, traced.bends, traced.branchings, area * traced.scale**2, native)
    straight = "mean_squared_curvature" not in found
    missing = {
        "no calibre away from branch points": math.isnan(found["calibre_mean"]),
        "too small for box counting": math.isnan(found["fractal_dimension"]),
        "no segment is long enough": math.isnan(found["tortuosity"]),
        "no segment is long enough for curvature": straight and not math.isnan(found["tortuosity"]),
    }
    note = "; ".join(note for note, is_so in missing.items() if is_so) or None
    return Measurements(note, density, native, **found, num_components=traced.num_components)


def of_lines(
    traced: Traced, bends: Bends, branchings: Branchings, area: float, native: float
) -> dict[str, Any]:
    """What the vessels' centre lines tell, by the names of Measurements, in a field of `area` px^2
    that is `native` px across in the photograph; NaN is unmeasurable."""
    width = _line_width(nearest(traced.depth, traced.paths.points), traced.calibres.widths)
    cell = max(1, round(traced.diameter / CELLS))
    dimension = fractal_dimension(traced.vessel, width, cell)
    return of_part(traced, bends, branchings, area, native) | {"fractal_dimension": dimension}


def of_part(
    traced: Traced, bends: Bends, branchings: Branchings, area: float, native: float
) -> dict[str, Any]:
    """All but the fractal dimension; else as of_lines."""
    paths, points, diameter = traced.paths, traced.points, traced.diameter
    lengths, chords = arc_lengths(paths, points), chord_lengths(paths, points)
    mean, std = mean_and_std(traced.calibres.widths, traced.calibres.weights)
    long = chords >= LEAST_LENGTH * diameter
    per_px = float(lengths.sum() / area)
    return {
        "length_density_per_px": per_px * diameter / native,
        "length_density": per_px * diameter,
        "calibre_mean_px": mean / diameter * native,
        "calibre_mean": mean / diameter,
        "calibre_std_px": std / diameter * native,
        "calibre_std": std / diameter,
        "tortuosity": float(lengths[long].sum() / chords[long].sum()) if long.any() else math.nan,
        **_curvatures(bends.mean, float(lengths.sum()), diameter, native),
        "branch_angle_mean_deg": branchings.mean_angle,
        "num_branch_points": len(branchings.at),
    }


def measure_canvas(score: Plane, fov: Image8, geometry: Geometry, threshold: float) -> Measurements:
    """score [S, S] float32 in [0, 1], fov [S, S] uint8 (255 inside), both on the canvas -> what the
    vessels of the mask there are like, at the photograph's scale: before that mask is resampled.

    `threshold` is that from which a pixel is vessel.
    """
    return measure(canvas_mask(score, fov, threshold), zoom_of(geometry))


def canvas_mask(score: Plane, fov: Image8, threshold: float) -> Image8:
    """-> mask [S, S] uint8 classes of the canvas; as measure_canvas takes them."""
    return classes_of(score >= np.float32(threshold), fov > HALF)


def zoom_of(geometry: Geometry) -> float:
    """px of the photograph for one of its canvas."""
    return geometry.box_height / geometry.scaled_height


def _curvatures(bend: float, length: float, diameter: float, native: float) -> dict[str, float]:
    """Mean squared curvature (1/px^2) along so many px of centre lines, in a field `diameter` px
    across where it was measured and `native` as it is told -> the columns; none where it is NaN."""
    if math.isnan(bend):
        return {}
    return {
        "total_squared_curvature_per_px": bend * length * diameter / native,
        "total_squared_curvature": bend * length * diameter,
        "mean_squared_curvature_per_px2": bend * (diameter / native) ** 2,
        "mean_squared_curvature": bend * diameter**2,
    }


def _line_width(depths: Floats, calibres: Floats) -> float:
    """Half widths [N] and calibres [M] px along centre lines -> px that vessels are wide, of the
    medians the lesser: profiles are too long where a line bends within its width."""
    found = [np.median(2 * depths - 0.5)] if len(depths) else []
    return float(min([*found, np.median(calibres)] if len(calibres) else [*found, np.inf]))
