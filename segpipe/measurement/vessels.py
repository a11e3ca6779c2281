"""A mask -> measurements of its vessels.

Vessels are measured in the mask's own pixels where its field of view is 500 to 1,024 px wide; a
larger one is reduced to that and a smaller one enlarged. They are told in the photograph's px and
in field diameters. Give the mask that the network made, at its working diameter: one that was
reduced below it has lost its thinnest vessels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.canvas import SAME_SCALE, Geometry
from segpipe.data.classes import OUTSIDE, VESSEL, classes_of
from segpipe.data.fov import fov_box
from segpipe.measurement.branching import branch_angles, count_branch_points, find_places
from segpipe.measurement.calibre import mean_and_std, measure_calibres, reach_tips
from segpipe.measurement.curvature import mean_squared_curvature
from segpipe.measurement.fractal import CELLS, fractal_dimension
from segpipe.measurement.quality import HALF
from segpipe.measurement.skeleton import (
    Floats,
    arc_lengths,
    chord_lengths,
    nearest,
    smooth,
    thin,
    trace,
    without_spurs,
)

LEAST_FIELD, LARGEST_FIELD = 500.0, 1024.0  # px across, between which a mask is measured as it is
COVERED = 85  # of 255: a third. At a half, lines a pixel wide break where they lie between pixels
LEAST_LENGTH = 0.02  # diameters from end to end of a segment whose tortuosity is told
SPECK = 5e-5  # squared diameters: what is less than LEAST_LENGTH of the thinnest vessel (0.0025)
SMOOTHING_PX = 2.0  # sigma along a path: more than the stairs of pixels, less than any bend


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
    mask = np.ascontiguousarray(mask)
    fov = mask != OUTSIDE
    if not fov.any():
        return Measurements("no field of view", math.nan, math.nan)
    top, left, bottom, right = fov_box(fov)
    extent = max(bottom - top, right - left)
    scale = _scale_of(extent)
    area = np.count_nonzero(fov)
    density = float(np.count_nonzero(mask == VESSEL) / area)
    diameter, native = extent * scale, extent * zoom  # px where it is measured, px as it is told
    coverage = _resample(mask[top:bottom, left:right] == VESSEL, scale)
    vessel, num_components = _without_specks(coverage >= COVERED, diameter)
    if not num_components:
        return Measurements("no vessel", density, native, 0.0, 0.0)
    depth = np.asarray(cv2.distanceTransform(vessel, cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)
    paths, forks = trace(without_spurs(thin(vessel), depth))
    points = reach_tips(paths, smooth(paths, SMOOTHING_PX), coverage, depth)
    lengths, chords = arc_lengths(paths, points), chord_lengths(paths, points)
    calibres, weights = measure_calibres(paths, points, coverage, depth)
    mean, std = mean_and_std(calibres, weights)
    long = chords >= LEAST_LENGTH * diameter
    per_px = float(lengths.sum() / (area * scale**2))
    dimension = fractal_dimension(
        vessel, _line_width(nearest(depth, paths.points), calibres), max(1, round(diameter / CELLS))
    )
    bend = mean_squared_curvature(paths, points, diameter)
    places = find_places(paths, forks, lengths, depth)
    angles = branch_angles(places, paths, points, depth, diameter)
    missing = {
        "no calibre away from branch points": not len(calibres),
        "too small for box counting": math.isnan(dimension),
        "no segment is long enough": not long.any(),
        "no segment is long enough for curvature": long.any() and math.isnan(bend),
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
        tortuosity=float(lengths[long].sum() / chords[long].sum()) if long.any() else math.nan,
        **_curvatures(bend, float(lengths.sum()), diameter, native),
        branch_angle_mean_deg=float(angles.mean()) if len(angles) else math.nan,
        num_branch_points=count_branch_points(places),
        num_components=num_components,
    )


def measure_canvas(score: Plane, fov: Image8, geometry: Geometry, threshold: float) -> Measurements:
    """score [S, S] float32 in [0, 1], fov [S, S] uint8 (255 inside), both on the canvas -> what the
    vessels of the mask there are like, at the photograph's scale: before that mask is resampled.

    `threshold` is that from which a pixel is vessel.
    """
    mask = classes_of(score >= np.float32(threshold), fov > HALF)
    return measure(mask, geometry.box_height / geometry.scaled_height)


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


def _scale_of(extent: float) -> float:
    """The factor at which a field of this extent (px) is measured."""
    if extent > LARGEST_FIELD * (1 + SAME_SCALE):
        return LARGEST_FIELD / extent
    return LEAST_FIELD / extent if extent < LEAST_FIELD else 1.0


def _resample(vessel: Mask, scale: float) -> Image8:
    """vessel [H, W] bool -> how much of each px is covered [h, w] uint8 in 0 to 255, and 2 px more
    on each side."""
    coverage = vessel.view(np.uint8) * np.uint8(255)
    if scale != 1.0:
        height, width = (max(1, round(side * scale)) for side in vessel.shape)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        coverage = np.asarray(cv2.resize(coverage, (width, height), interpolation=how), np.uint8)
    return np.pad(coverage, 2)


def _without_specks(vessel: Mask, diameter: float) -> tuple[Image8, int]:
    """vessel [h, w] bool -> its 8-connected components of a vessel's area [h, w] uint8, their
    number."""
    large = vessel.astype(np.uint8)
    num, label = cv2.connectedComponents(large, connectivity=8, ltype=cv2.CV_32S)
    pixels = np.flatnonzero(vessel)
    component = np.asarray(label).ravel()[pixels]
    kept = np.bincount(component, minlength=num) >= SPECK * diameter**2
    large.ravel()[pixels[~kept[component]]] = 0
    return large, int(kept.sum())
