"""What is missing of a round field and was there: vessels at the rim, shadows."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.circle import TOLERANCE, Circle
from segpipe.data.regions import closed

TAB = 0.04  # of the radius: so far beyond its circle an aperture's tab reaches; DRIVE's do
NUM_SECTORS = 72  # of the disc, 5 degrees each: so finely shadows are told from cuts
DEPTHS = 0.05, 0.15  # of the radius from the region's rim: where its light is compared
BAND = 0.015  # of the radius: so near to them
DEEP = 0.73  # at most, of a shadow with a steep edge
GOES_ON = 1.3  # times as much the light is lost beyond a shadow's edge as before it; of cuts 1.9
SHADOW = 0.85  # at most, their lights' ratio over that by the circle; a soft cut's may be 0.9


def mended(region: Mask, circle: Circle | None, light: Plane) -> Image8:
    """The region [h, w] bool that is lit -> its aperture's share of each pixel, 0 to 255.

    light [h, w] float32 is the square root of the brightest channel over the frame's. Where the
    region's rim lies on a circle, what is far beyond the circle is taken away, and two kinds of
    what is missing in its disc are filled: dents as narrow as vessels, and shadows, toward which
    the light fades slower than toward the rim on the circle and beyond whose edge it goes on
    fading. What is cut off as sharply as that rim stays cut off, and so does all where no circle
    is found: a wrong guess costs more.
    """
    if circle is None:
        return region.view(np.uint8) * np.uint8(255)
    rows, columns = np.indices(region.shape, np.float32)
    down, right = rows - np.float32(circle.y), columns - np.float32(circle.x)
    away = np.sqrt(down**2 + right**2) / np.float32(circle.radius)
    square = np.maximum(np.abs(down), np.abs(right)) / np.float32(circle.radius)
    kept: Mask = region & (away < 1 + TAB) & (square < 1 + TOLERANCE)
    kept |= closed(region) & (away < 1 - TOLERANCE)
    missing = ~kept & (away < 1 - 2 * TOLERANCE)
    if not missing.any():
        return kept.view(np.uint8) * np.uint8(255)
    sector = (np.arctan2(down, right) * (NUM_SECTORS / (2 * math.pi))).astype(int) % NUM_SECTORS
    dented = np.bincount(sector[missing], minlength=NUM_SECTORS) > 0
    depth = cv2.distanceTransform(kept.view(np.uint8), cv2.DIST_L2, 3) / np.float32(circle.radius)
    near, far = (_by_sector(light, sector, np.abs(depth - at) < BAND) for at in DEPTHS)
    fade = near / np.maximum(far, 1)
    on_circle = fade[~dented & (near > 0)]
    if not on_circle.size:
        return kept.view(np.uint8) * np.uint8(255)
    fade /= np.median(on_circle)
    shadowed = dented & (near > 0) & (fade < SHADOW)
    if shadowed.any():
        out = cv2.distanceTransform(1 - kept.view(np.uint8), cv2.DIST_L2, 3)
        ring = np.abs(out / np.float32(circle.radius) - DEPTHS[0]) < BAND
        beyond = _by_sector(light, sector, ring & (away < 1))
        cut = shadowed & (fade > DEEP) & (near - beyond > GOES_ON * (far - near))
        around = np.arange(NUM_SECTORS)[:, None] + np.arange(-2, 3)
        wide = cut[around % NUM_SECTORS].all(axis=1)  # wider than a vessel
        shadowed &= ~wide[around % NUM_SECTORS].any(axis=1)
    disc = 255 * np.clip(circle.radius * (1 - TOLERANCE - away) + 0.5, 0, 1)
    return np.where(kept, 255, disc * shadowed[sector]).astype(np.uint8)


def _by_sector(light: Plane, sector: npt.NDArray[np.int_], where: Mask) -> npt.NDArray[np.float64]:
    """The mean of light [h, w] in each sector and its two neighbours, 0 where there is none."""
    sums = np.bincount(sector[where], light[where], NUM_SECTORS)
    nums = np.bincount(sector[where], minlength=NUM_SECTORS)
    around = np.arange(NUM_SECTORS)[:, None] + (-1, 0, 1)
    sums, nums = (x[around % NUM_SECTORS].sum(axis=1) for x in (sums, nums))
    means: npt.NDArray[np.float64] = sums / np.maximum(nums, 1)
    return means
