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

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.fov import fov_box
from segpipe.measurement.quality import HALF, Quality, hints_of, reduce_canvas

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
    green, small = reduce_canvas(canvas, fov)
    hints = hints_of(green, small > HALF)
    if math.isnan(hints.exposure):
        return hints
    figures = figures_of(hints, canvas, fov, score, threshold, zoom, (green, small))
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
    reduced: tuple[Image8, Image8],
) -> Figures:
    """As assess_mask has them, with a field, its hints, and what reduce_canvas makes of them ->
    what the models take."""
    green, small = reduced
    top, left, bottom, right = fov_box(fov > HALF)
    field_px = max(bottom - top, right - left) * zoom
    inside = small > HALF
    if score.shape != small.shape:  # by less than 2, where linear and by area are nearly the same
        score = np.asarray(cv2.resize(score, small.shape, interpolation=cv2.INTER_LINEAR))
    score = score * inside
    vessel = (score >= np.float32(threshold)).view(np.uint8)
    figures = {
        "field_px": math.log2(max(field_px, 1.0)),
        "focus": 0.0 if math.isnan(hints.focus) else hints.focus,
        "exposure": hints.exposure,
        "readable": 0.0 if math.isnan(hints.readable_fraction) else hints.readable_fraction,
    }
    figures |= _of_score(score, vessel, small)
    figures |= _of_lines(green, vessel, inside)
    return figures | _of_colours(canvas, fov, len(small))


def _of_score(score: Plane, vessel: Image8, fov: Image8) -> Figures:
    """What the network found: how sure it is, in how many pieces, in how much of the field."""
    num_vessel = int(np.count_nonzero(vessel))
    found = float((score * vessel).sum())
    num, _, stats, _ = cv2.connectedComponentsWithStats(vessel, connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    extent = np.maximum(stats[1:, cv2.CC_STAT_WIDTH], stats[1:, cv2.CC_STAT_HEIGHT])
    side = (max(1, len(fov) // CELL_PX),) * 2
    cells, field = (
        np.asarray(cv2.resize(one, side, interpolation=cv2.INTER_AREA))
        for one in (vessel * np.uint8(255), fov)
    )
    return {
        # 2 |A and B| / (|A| + |B|) in expectation, where a score is a probability
        "expected_dice": 2 * found / max(float(score.sum()) + num_vessel, 1.0),
        "connected": float(area[extent >= LONG_PX].sum()) / max(num_vessel, 1),
        "fragments": math.log(max(1000 * (num - 1) / max(num_vessel, 1), 1.0)),
        "spread": float((cells[field > HALF] > CELL_SHARE).sum() / max((field > HALF).sum(), 1)),
    }


def _of_lines(green: Image8, vessel: Image8, inside: Mask) -> Figures:
    """Whether dark lines are vessels and little else is there: in a retina they are most of it."""
    mean = float(cv2.mean(green, inside.view(np.uint8))[0])
    fine = green.astype(np.float32) - cv2.GaussianBlur(green.astype(np.float32), (7, 7), 1.0)
    core = cv2.erode(inside.view(np.uint8), np.ones((RIM_PX, RIM_PX), np.uint8)).view(bool)
    near = cv2.dilate(vessel, np.ones((5, 5), np.uint8)).view(bool)
    soft = cv2.GaussianBlur(green, (3, 3), 0)
    line = np.ones((LINE_PX, LINE_PX), np.uint8)
    dark = cv2.morphologyEx(soft, cv2.MORPH_BLACKHAT, line)[core].astype(np.float32) ** 2
    bright = cv2.morphologyEx(soft, cv2.MORPH_TOPHAT, line)[core].astype(np.float32) ** 2
    near = near[core]
    all_dark, both = max(float(dark.sum()), 1.0), max(float(dark.sum() + bright.sum()), 1.0)
    on_vessels = float(dark[near].sum())
    num_off = max(int(near.size - np.count_nonzero(near)), 1)
    off = math.sqrt((float(dark.sum()) - on_vessels) / num_off)
    return {
        "grain": _relative(math.sqrt(float(np.mean(fine[core] ** 2))) if core.any() else 0, mean),
        "dark_share": float(dark.sum()) / both,
        "explained": on_vessels / all_dark,
        "explained_of_both": on_vessels / both,
        "other_lines": _relative(off, mean),
        "edges": _relative(_steepest(green, core, vessel), mean),
    }


def _steepest(green: Image8, core: Mask, vessel: Image8) -> float:
    """Grey levels a px, of the steepest hundredth of what is no line and away from vessels."""
    half = cv2.resize(green, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(half.astype(np.float32), (9, 9), 1.5)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))
    height, width = half.shape
    away = cv2.dilate(vessel, np.ones((5, 5), np.uint8)) == 0
    where = (core & away)[: 2 * height : 2, : 2 * width : 2]
    slopes = np.hypot(across, down)[: where.shape[0], : where.shape[1]][where] / 16
    return float(np.quantile(slopes, 0.99)) if slopes.size else 0.0


def _of_colours(canvas: Image8, fov: Image8, small_side: int) -> Figures:
    """Blood and pigment leave red most light and blue least; a grey picture has all alike.

    Told at a quarter of the size where photographs are assessed, `small_side` px, or about that.
    """
    factor = max(1, round(4 * len(canvas) / small_side))
    side = (len(canvas) // factor,) * 2
    small = np.asarray(cv2.resize(canvas, side, interpolation=cv2.INTER_AREA))
    within = np.asarray(cv2.resize(fov, side, interpolation=cv2.INTER_NEAREST)) > HALF
    pixels = small[within].astype(np.int16)  # [N, 3]
    if not len(pixels):
        return {"order": 0.0, "hues": 0.0}
    red, green, blue = pixels.T
    rising = (red >= green - ORDER_LEVELS).mean(), (green >= blue - ORDER_LEVELS).mean()
    shares = pixels / (pixels.sum(axis=1, keepdims=True) + 1.0)
    return {
        "order": float(min(rising)),
        "hues": float(shares[:, 0].std() + shares[:, 2].std()),
    }


def _relative(value: float, mean: float) -> float:
    """The logarithm of a difference in light over the light that there is, in grey levels."""
    return math.log(max(value, 0.1) / max(mean, 4.0))
