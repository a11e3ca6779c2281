"""Regions of a picture: opened, closed, the largest of them."""

from __future__ import annotations

import cv2
import numpy as np

from segpipe.data.arrays import Image8, Mask

OPENING_PX = (
    4  # at the search's size: strips of flare and a frame's noise are thinner than twice this
)


def opened(region: Mask) -> Image8:
    """region [h, w] -> uint8, 1 in it, less what is thinner than OPENING_PX on each side.

    What lies beyond the image counts as dark.
    """
    return _without_thin(region, cv2.MORPH_OPEN)


def closed(region: Mask) -> Mask:
    """region [h, w] -> the same and what is thinner than OPENING_PX on each side beside it.

    What lies beyond the image counts as dark.
    """
    return _without_thin(region, cv2.MORPH_CLOSE).view(bool)


def _without_thin(region: Mask, operation: int) -> Image8:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    changed = cv2.morphologyEx(
        region.view(np.uint8),
        operation,
        cross,
        iterations=OPENING_PX,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return np.asarray(changed, np.uint8)


def largest_region(bright: Image8) -> Mask:
    """bright [h, w] uint8, 0 or 1 -> bool, True in its largest region and in that one's holes."""
    num, found = cv2.connectedComponents(bright, connectivity=4, ltype=cv2.CV_16U)
    if num == 1:
        return np.zeros(bright.shape, bool)
    regions = np.asarray(found, np.uint16)
    sizes = cv2.calcHist([regions], [0], None, [num], [0, num]).ravel()  # quicker than bincount
    largest = regions == 1 + np.argmax(sizes[1:])
    framed = np.pad(largest, 1).view(np.uint8)
    cv2.floodFill(framed, None, (0, 0), (2,))  # all that is reached from outside
    filled: Mask = framed[1:-1, 1:-1] != 2
    return filled


def convex_hull(region: Mask) -> Mask:
    """region [h, w] bool -> its convex hull."""
    found = cv2.findContours(region.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = np.zeros(region.shape, np.uint8)
    if found[0]:
        cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(found[0])), (1,))
    return hull.view(bool)
