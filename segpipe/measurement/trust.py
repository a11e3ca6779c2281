"""A photograph, its mask and score -> how far the mask can be trusted, 0 to 1.

Two logistic models of a few figures each, whose product is the quality: the vessel Dice to expect,
and whether this is a photograph of a retina at all. benchmarks/quality.py fitted them, with the
default checkpoint, on photographs of DRIVE and HRF that were degraded on purpose and on pictures
that show no retina; trust.json has their coefficients, results/quality.md what they are worth.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import cv2
import numpy as np

from segpipe import kernels
from segpipe.data.arrays import Image8, Plane
from segpipe.data.fov import fov_box
from segpipe.measurement.quality import (
    HALF,
    Quality,
    Reduced,
    averaged,
    energy,
    hints_of,
    reduce_canvas,
)

LONG_PX = 80  # of a vessel from end to end, where the field is 540 px wide: it is no fragment
CELL_PX = 34  # side of a cell in which a vessel is looked for
CELL_SHARE = 5  # of 255: so much vessel in a cell counts
LINE_PX = 11  # the widest vessel of DRIVE: what is narrower is a line
ORDER_LEVELS = 6  # by which green may exceed red, and blue green: noise, and a grey picture's JPEG
RIM_PX = 15  # the frame's edge is not looked at

Figures = dict[str, float]


def assess_mask(
    canvas: Image8, fov: Image8, score: Plane, threshold: float, zoom: float
) -> Quality:
    """canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 (255 inside), score [S, S] float32 in [0, 1] ->
    the photograph's hints, as assess_quality, with the mask's `quality`; NaN without a field.

    `threshold` is that from which a pixel is vessel, `zoom` px of the photograph for one of the
    canvas.
    """
    reduced = reduce_canvas(canvas, fov)
    hints = hints_of(reduced)
    if math.isnan(hints.exposure):
        return hints
    figures = figures_of(hints, canvas, fov, score, threshold, zoom, reduced)
    return replace(hints, quality=quality_of(figures, coefficients()))


def quality_of(figures: Figures, models: dict[str, Any]) -> float:
    """The product of both models, as trust.json has them."""
    return math.prod(_logistic(figures, model) for model in models.values())


@lru_cache(maxsize=1)
def coefficients() -> dict[str, Any]:
    """For each model its `bias` and `terms`: a figure, the range it is clipped to, its weight."""
    text = (files("segpipe.measurement") / "trust.json").read_text()
    models: dict[str, Any] = json.loads(text)
    return models


def _logistic(figures: Figures, model: dict[str, Any]) -> float:
    total = model["bias"]
    for name, low, high, weight in model["terms"]:
        total += weight * min(max(figures[name], low), high)
    return 1 / (1 + math.exp(-total))


def figures_of(
    hints: Quality,
    canvas: Image8,
    fov: Image8,
    score: Plane,
    threshold: float,
    zoom: float,
    reduced: Reduced,
) -> Figures:
    """As assess_mask has them, with a field, its hints, and what reduce_canvas makes of them ->
    what the models take."""
    small = reduced.fov
    top, left, bottom, right = fov_box(fov > HALF)
    field_px = max(bottom - top, right - left) * zoom
    if score.shape != small.shape:  # by less than 2, where linear and by area are nearly the same
        score = np.asarray(cv2.resize(score, small.shape, interpolation=cv2.INTER_LINEAR))
    score = np.asarray(cv2.copyTo(score, (small > HALF).view(np.uint8)), np.float32)
    vessel = (score >= np.float32(threshold)).view(np.uint8)
    figures = {
        "field_px": math.log2(max(field_px, 1.0)),
        "focus": 0.0 if math.isnan(hints.focus) else hints.focus,
        "exposure": hints.exposure,
        "readable": 0.0 if math.isnan(hints.readable_fraction) else hints.readable_fraction,
    }
    figures |= _of_score(score, vessel, small)
    figures |= _of_lines(reduced, vessel, 255 * hints.exposure)
    return figures | _of_colours(canvas, fov, len(small))


def _of_score(score: Plane, vessel: Image8, fov: Image8) -> Figures:
    """What the network found: how sure it is, in how many pieces, in how much of the field."""
    num_vessel = int(np.count_nonzero(vessel))
    found = float((score * vessel).sum())
    num, long = _parts(vessel)
    side = max(1, len(fov) // CELL_PX)
    cells, field = (averaged(one, side) for one in (vessel * np.uint8(255), fov))
    return {
        # 2 |A and B| / (|A| + |B|) in expectation, where a score is a probability
        "expected_dice": 2 * found / max(float(score.sum()) + num_vessel, 1.0),
        "connected": long / max(num_vessel, 1),
        "fragments": math.log(max(1000 * num / max(num_vessel, 1), 1.0)),
        "spread": float((cells[field > HALF] > CELL_SHARE).sum() / max((field > HALF).sum(), 1)),
    }


def _parts(vessel: Image8) -> tuple[int, int]:
    """-> how many pieces, and how many pixels are of those that are LONG_PX high or wide."""
    if not kernels.missing():
        return kernels.long_parts(vessel, LONG_PX)
    num, _, stats, _ = cv2.connectedComponentsWithStats(vessel, connectivity=8)
    extent = np.maximum(stats[1:, cv2.CC_STAT_WIDTH], stats[1:, cv2.CC_STAT_HEIGHT])
    return num - 1, int(stats[1:, cv2.CC_STAT_AREA][extent >= LONG_PX].sum())


def _of_lines(reduced: Reduced, vessel: Image8, mean: float) -> Figures:
    """Whether dark lines are vessels and little else is there: in a retina they are most of it.
    `mean` is green's in the field."""
    green, fov, soft = reduced
    fine = np.asarray(cv2.subtract(green, soft, dtype=cv2.CV_32F))
    inside = (fov > HALF).view(np.uint8)
    core = np.asarray(cv2.erode(inside, np.ones((RIM_PX, RIM_PX), np.uint8)), np.uint8)
    near = np.asarray(cv2.dilate(vessel, np.ones((5, 5), np.uint8)), np.uint8)
    even = cv2.GaussianBlur(green, (3, 3), 0)
    line = np.ones((LINE_PX, LINE_PX), np.uint8)
    dark_lines, bright_lines = (
        np.asarray(cv2.morphologyEx(even, how, line))
        for how in (cv2.MORPH_BLACKHAT, cv2.MORPH_TOPHAT)
    )
    dark, bright = energy(dark_lines, core), energy(bright_lines, core)
    on_vessels = energy(dark_lines, near & core)
    num_core, num_on = (int(np.count_nonzero(one)) for one in (core, near & core))
    off = math.sqrt((dark - on_vessels) / max(num_core - num_on, 1))
    return {
        "grain": _relative(math.sqrt(energy(fine, core) / max(num_core, 1)), mean),
        "dark_share": dark / max(dark + bright, 1.0),
        "explained": on_vessels / max(dark, 1.0),
        "explained_of_both": on_vessels / max(dark + bright, 1.0),
        "other_lines": _relative(off, mean),
        "edges": _relative(_steepest(green, core * (near == 0)), mean),
    }


def _steepest(green: Image8, where: Image8) -> float:
    """Grey levels a px, of the steepest hundredth of some pixels, which are not 0 in `where`."""
    half = np.asarray(cv2.resize(green, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    smooth = cv2.GaussianBlur(half.astype(np.float32), (9, 9), 1.5)
    some = where[::2, ::2][: half.shape[0], : half.shape[1]].astype(np.bool_)
    across, down = (
        cv2.Sobel(smooth, cv2.CV_32F, *way)[: some.shape[0], : some.shape[1]][some]
        for way in ((1, 0), (0, 1))
    )
    return float(np.quantile(np.hypot(across, down) / 16, 0.99)) if across.size else 0.0


def _of_colours(canvas: Image8, fov: Image8, small_side: int) -> Figures:
    """Blood and pigment leave red most light and blue least; a grey picture has all alike.

    Told at a quarter of the size where photographs are assessed, `small_side` px, or about that.
    """
    factor = max(1, round(4 * len(canvas) / small_side))
    side = (len(canvas) // factor,) * 2
    whole = factor > 2 and canvas.shape[:2] == (factor * side[0],) * 2
    if whole and not kernels.missing():
        small = kernels.block_means(canvas, factor)
    else:
        small = np.asarray(cv2.resize(canvas, side, interpolation=cv2.INTER_AREA))
    within = np.asarray(cv2.resize(fov, side, interpolation=cv2.INTER_NEAREST)) > HALF
    if not within.any():
        return {"order": 0.0, "hues": 0.0}
    red, green, blue = (one[within].astype(np.int16) for one in cv2.split(small))
    rising = (red >= green - ORDER_LEVELS).mean(), (green >= blue - ORDER_LEVELS).mean()
    light = (red + green + blue) + 1.0
    return {
        "order": float(min(rising)),
        "hues": float((red / light).std() + (blue / light).std()),
    }


def _relative(value: float, mean: float) -> float:
    """The logarithm of a difference in light over the light that there is, in grey levels."""
    return math.log(max(value, 0.1) / max(mean, 4.0))
