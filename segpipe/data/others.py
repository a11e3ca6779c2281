"""Other lit regions of a picture: parts of its one field of view, or fields of their own."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from segpipe.data.arrays import Image8, Mask
from segpipe.data.circle import Circle, fit_circle, fit_two
from segpipe.data.regions import convex_hull

LEAST_SHARE = 0.1  # of the field: a second one is larger; one of 40 % of the diameter has 0.16
LEAST_PICTURE = 0.01  # share of the picture: smaller ones are not looked at
SAME_DISC = 0.8  # of a region in the field's disc: it is a part of that field
NEAR = 1.02  # radii: so far its disc reaches
SOLID = 0.9  # of its box, so much of it a square field fills, of its convex hull any
WIDEST = 3.0  # times as long as wide: a bar, not a field
UNIFORM = 5.0  # grey levels: standard deviation of a label's; of a retina it is larger


class Parts(NamedTuple):
    """The lit regions of a picture."""

    field: Mask
    """[h, w], the largest and what else lies on its circle."""
    circle: Circle | None
    """The field's."""
    others: Mask
    """[h, w], fields of their own."""
    loose: Mask
    """[h, w], neither: they may belong to the field."""


def sorted_parts(inside: Image8, region: Mask, circle: Circle | None, green: Image8) -> Parts:
    """Lit regions `inside` [h, w] (0 or 1), the largest [h, w] bool and its circle -> what each is.

    A field that a shadow or a cut parts lies on one circle; one beside it is another eye's, or the
    other picture of a stereo pair. What is as uniform in green [h, w] as a label is nothing.
    """
    others, loose = np.zeros_like(region), np.zeros_like(region)
    if np.count_nonzero(inside > region) < LEAST_PICTURE * region.size:  # the usual photograph
        return Parts(region, circle, others, loose)
    num, found, stats, _ = cv2.connectedComponentsWithStats(inside, None, None, None, 4, cv2.CV_16U)
    for n in range(1, num):
        area = stats[n, cv2.CC_STAT_AREA]
        if area < LEAST_PICTURE * region.size:
            continue
        part = found == n
        if (part & region).any():
            continue
        together = circle or fit_circle(region | part)
        if together is not None and _within(part, together) > SAME_DISC:
            region, circle = region | part, fit_circle(region | part) or circle
        elif green[part].std() < UNIFORM:
            continue
        elif area >= LEAST_SHARE * region.sum() and _is_field(part, stats[n]):
            others |= part
        else:
            loose |= part
    return Parts(region, circle, others, loose)


def split(region: Mask) -> tuple[Mask, Mask] | None:
    """A region [h, w] of two round fields that touch -> the larger, the smaller; else None."""
    circles = fit_two(region)
    if circles is None:
        return None
    rows, columns = np.indices(region.shape, np.float32)
    one, other = (
        np.hypot(rows - circle.y, columns - circle.x) / circle.radius for circle in circles
    )
    parts = region & (one < other), region & (one >= other)
    larger, smaller = sorted(parts, key=np.count_nonzero, reverse=True)
    return larger, smaller


def _within(part: Mask, circle: Circle) -> float:
    rows, columns = np.nonzero(part)
    away = np.hypot(rows - circle.y, columns - circle.x)
    return float((away < NEAR * circle.radius).mean())


def _is_field(part: Mask, stats: npt.NDArray[np.int32]) -> bool:
    """Whether its rim is round, or a square's, or a convex one with a frame all around."""
    left, top, width, height, area = stats
    if max(width, height) > WIDEST * min(width, height):
        return False
    if area > SOLID * width * height or fit_circle(part) is not None:
        return True
    framed = min(left, top, part.shape[1] - left - width, part.shape[0] - top - height) > 0
    return bool(framed and area > SOLID * convex_hull(part).sum())
