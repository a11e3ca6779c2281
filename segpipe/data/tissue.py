"""Dark beside a field of view: a frame, or retina that is badly lit."""

from __future__ import annotations

import cv2
import numpy as np

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.frames import corners
from segpipe.data.regions import convex_hull, opened

RINGS_PX = (2, 6), (10, 14)  # from a rim, on each side: where its step and the slopes are seen
FRAME_STEP = 2.0  # times the slopes beside it: steeper is a frame's rim
TISSUE_STEP = 1.4  # times the slopes: less steep is the retina's own shading
FLOOR = 0.15  # square roots of grey levels: by less a frame's light falls within 8 px
ENCLOSED = 0.7  # of a dark part, in the convex hull of what is lit: it is no frame
STRAIGHT = 0.95  # of its box: so much of it a bar fills
PURE_BLACK = 2.0  # square root of the grey level: of a frame that no light and no noise reach
AROUND = 0.5  # of a field's rim, beside stray light; a lid and its lashes lie on one side
SMALLEST = 0.002  # share of the picture: smaller dark parts are the field's


def dark_tissue(light: Plane, lit: Image8) -> tuple[Image8, Mask]:
    """light [h, w] (square root of the level), lit regions [h, w] (0 or 1) -> these with the dark
    retina beside them, [h, w] uint8, and what may be retina besides.

    A frame holds one of the picture's corners or is a bar from edge to edge, it does not lie
    within what is lit, and the light steps at its rim or is the same all over it; toward badly lit
    retina it falls on as it does before, to the corner. What is dim in a frame that is pure black
    is retina too, unless it lies all around.
    """
    whole, uncertain, frame = lit.copy(), np.zeros(lit.shape, bool), np.zeros(lit.shape, bool)
    hull = convex_hull(lit.view(bool))
    num, parts = cv2.connectedComponents(1 - lit, connectivity=4)
    for n in range(1, num):
        part = parts == n
        has_corner = part[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        if has_corner and part.mean() > SMALLEST and hull[part].mean() < ENCLOSED:
            is_frame = _is_frame(light, part)
        else:
            is_frame = _is_bar(part)
        if is_frame is None:
            uncertain |= part
        elif is_frame:
            frame |= part
            dim = _dim(light, part)
            rim = part & cv2.dilate(lit, np.ones((3, 3), np.uint8)).view(bool)
            if dim[rim].mean() < AROUND:
                whole |= dim.view(np.uint8)
            else:
                uncertain |= dim
        else:
            whole[part] = 1
    if frame[[0, 0, -1, -1], [0, -1, 0, -1]].sum() == 1:  # a frame has two at least
        uncertain |= frame
    return whole, uncertain


def _dim(light: Plane, part: Mask) -> Mask:
    """What of a part that is pure black at the picture's corners is brighter than that."""
    seen = np.zeros(part.shape, bool)
    for corner in corners(part.shape):
        seen[corner] = True
    floor = light[seen & part]
    if not floor.size or np.median(floor) > PURE_BLACK:
        return np.zeros(part.shape, bool)
    least = max(1.1 * PURE_BLACK, float(np.median(floor) + 4 * floor.std()))
    return opened(part & (light > least)).view(bool)


def _is_bar(part: Mask) -> bool:
    """Whether it is a straight bar from one edge of the picture to the other."""
    _, _, width, height = cv2.boundingRect(part.view(np.uint8))
    if height != part.shape[0] and width != part.shape[1]:
        return False
    along = part if height == part.shape[0] else part.T
    middle = np.ascontiguousarray(along[len(along) // 10 : -len(along) // 10])
    return bool(middle.sum() > STRAIGHT * middle.any(axis=0).sum() * len(middle))


def _is_frame(light: Plane, part: Mask) -> bool | None:
    """None where the light does not tell."""
    deep, away = (
        np.asarray(cv2.distanceTransform(one.view(np.uint8), cv2.DIST_L2, 3), np.float32)
        for one in (part, ~part)
    )
    near, far = RINGS_PX
    inner = _mean(light, away, *far) - _mean(light, away, *near)
    step = _mean(light, away, *near) - _mean(light, deep, *near)
    outer = _mean(light, deep, *near) - _mean(light, deep, *far)
    if np.isnan(outer):  # too narrow for a frame's floor to be seen
        return None
    shading = max(inner, outer)
    if step > (TISSUE_STEP if outer < FLOOR else FRAME_STEP) * shading:
        return True
    end = float(deep.max())
    floor = _mean(light, deep, end - far[1], end - far[0]) - _mean(light, deep, end - near[1], end)
    return False if step < TISSUE_STEP * shading and floor > FLOOR else None


def _mean(light: Plane, distance: Plane, low: float, high: float) -> float:
    """Of the light at such distances (px), NaN where there is none."""
    ring = (distance > max(low, 0)) & (distance <= high)
    return float(light[ring].mean()) if ring.any() else float("nan")


def dents(field: Mask) -> Mask:
    """field [h, w] -> what its convex hull holds beside it: apertures are convex."""
    return convex_hull(field) & ~field
