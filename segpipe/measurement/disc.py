"""The optic disc: where it is, how large, and what its place says of the eye."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from segpipe.data.arrays import DISC_STEP, Image8, Plane
from segpipe.data.canvas import Geometry

SURE = 0.5  # a pixel is disc from here on
LEAST_PEAK = 0.7  # of a disc's surest pixels, below which there is none
LEAST_AREA, LARGEST_AREA = 0.003, 0.06  # squared field diameters: half and thrice as wide as usual
TEMPORAL = 0.12  # field diameters from the middle from which a disc lies to one side


@dataclass(frozen=True)
class DiscPlace:
    """In px of the canvas, or of the photograph as its file has them; pixels' centres are whole."""

    x: float
    y: float
    height: float
    width: float

    @property
    def diameter(self) -> float:
        """Mean of height and width."""
        return (self.height + self.width) / 2


@dataclass(frozen=True)
class Disc(DiscPlace):
    """One that was found."""

    confidence: float
    """Mean of the network's probability over its pixels, 0 to 1."""

    def in_photograph(self, geometry: Geometry) -> Disc:
        """The same in px of the photograph whose canvas this is of."""
        g = geometry
        down, across = g.box_height / g.scaled_height, g.box_width / g.scaled_width
        return Disc(
            x=(self.x + 0.5) * across - 0.5 + g.left,
            y=(self.y + 0.5) * down - 0.5 + g.top,
            height=self.height * down,
            width=self.width * across,
            confidence=self.confidence,
        )


def find_disc(prob: Plane, fov: Image8, diameter: float) -> Disc | None:
    """prob [S / DISC_STEP, S / DISC_STEP] float32 of the disc, fov [S, S] uint8 (255 inside) of
    the canvas, where the field is `diameter` px across -> the disc in px of the canvas, or None
    where there is none.

    Of the connected pixels from SURE on that whose probabilities sum to most, if it is of a disc's
    size and sure enough. Height and width are those of the ellipse with the same second moments.
    """
    middle = slice(DISC_STEP // 2, None, DISC_STEP)
    small = np.where(fov[middle, middle] > 127, prob, np.float32(0))
    found = np.ascontiguousarray(small >= SURE, np.uint8)
    num, label, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    if num < 2:
        return None
    pixels = np.flatnonzero(found.view(np.bool_))
    part, sure = label.ravel()[pixels], small.ravel()[pixels]
    best = 1 + int(np.argmax(np.bincount(part, sure, num)[1:]))
    area = float(stats[best, cv2.CC_STAT_AREA]) * DISC_STEP**2
    rows, columns = np.divmod(pixels[part == best], found.shape[1])
    probs = sure[part == best]
    if not LEAST_AREA <= area / diameter**2 <= LARGEST_AREA or probs.max() < LEAST_PEAK:
        return None
    # the variance along an ellipse's axis is a sixteenth of the squared axis
    width, height = (4 * DISC_STEP * float(one.std()) for one in (columns, rows))
    x, y = (DISC_STEP * (float(one.mean()) + 0.5) - 0.5 for one in (columns, rows))
    return Disc(x, y, height, width, float(probs.mean()))


def offset(disc: Disc, box: tuple[int, int, int, int]) -> tuple[float, float]:
    """Where the disc's centre is from the middle of the field's box (top, left, bottom, right in
    the same px), in field diameters: to the right, and down."""
    top, left, bottom, right = box
    diameter = max(bottom - top, right - left)
    return (
        (disc.x - (left + right - 1) / 2) / diameter,
        (disc.y - (top + bottom - 1) / 2) / diameter,
    )


def laterality(right: float, down: float, orientation: int = 1) -> str | None:
    """The eye of a photograph whose disc lies so far from the field's middle, in field diameters:
    R right, L left, None where it cannot be told.

    The disc is nasal of the fovea: where a field is centred on the macula, or on both, it is on the
    right of a right eye as it is shown. `orientation` is EXIF's, by which viewers turn the file.
    """
    if not 1 <= orientation <= 8 or math.isnan(right):
        return None
    shown = SHOWN_RIGHT[orientation - 1]
    across = shown[0] * right + shown[1] * down
    if abs(across) < TEMPORAL:
        return None
    return "R" if across > 0 else "L"


SHOWN_RIGHT = ((1, 0), (-1, 0), (-1, 0), (1, 0), (0, 1), (0, -1), (0, -1), (0, 1))
"""For EXIF's orientations 1 to 8: what lies to the right as shown, in (right, down) of the file."""
