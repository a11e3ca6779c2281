"""A photograph on the canvas -> hints at its quality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from segpipe import kernels
from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.fov import fov_box

DIAMETER = 540.0  # px of the field where photographs are assessed: DRIVE's
LARGE = 1.1  # diameters from which a field is reduced to that
HALF = 127  # of 255: a soft field's edge
FLAT = 0.004  # local contrast: the flattest hundredth of DRIVE's training photographs has as much
GREEN = 1  # of red, green, blue
DARK, BRIGHT = 16, 250  # grey levels of green beyond which vessels drown in noise or saturation
LOCAL_PX = 34  # side of a neighbourhood: a sixteenth of the diameter
RIM_PX = 12  # the frame's edge reaches so far into the field under the widest blur


@dataclass(frozen=True)
class Quality:
    """How well a photograph shows its vessels: hints, which reject nothing. NaN without a field."""

    focus: float
    """Energy of green's structures between 1 and 2 px / between 2 and 4 px; 0 and more."""
    exposure: float
    """Mean of green in the field, 0 to 1."""
    underexposed_fraction: float
    """Share of the field whose green is below DARK."""
    overexposed_fraction: float
    """Share of the field whose green is BRIGHT or above."""
    readable_fraction: float
    """Share of the field with light and contrast enough to show vessels."""
    quality: float = math.nan
    """How far the mask can be trusted, 0 to 1, by segpipe.measurement.trust; NaN of no mask."""


def assess_quality(canvas: Image8, fov: Image8) -> Quality:
    """canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 (255 inside) -> its Quality where the field is
    540 px wide (DIAMETER): a larger one is reduced, a smaller one stays as it is.

    Vessels are darkest in green. Both energies are of differences of Gaussians (Burt and Adelson
    1983), whose ratio neither exposure nor contrast changes; blur takes the finer one first.
    """
    return hints_of(reduce_canvas(canvas, fov))


def hints_of(reduced: Reduced) -> Quality:
    """What reduce_canvas makes of a canvas and its field -> as assess_quality."""
    green, fov, fine = reduced
    inside = fov > HALF
    if not inside.any():
        return Quality(*[math.nan] * 5)
    levels = cv2.calcHist([green], [0], inside.view(np.uint8), [256], [0, 256]).ravel()
    shares = levels.astype(np.float64) / levels.sum()
    middle = cv2.GaussianBlur(fine, (11, 11), math.sqrt(3))  # variances add: sigma 2
    half = np.ascontiguousarray(middle[::2, ::2], np.float32)
    coarse = cv2.GaussianBlur(half, (11, 11), math.sqrt(3))  # of px twice as large: sigma 4
    coarser_band = np.asarray(half - coarse, np.float32)
    rim = (2 * RIM_PX + 1,) * 2
    core = np.asarray(cv2.blur(inside.view(np.uint8) * np.uint8(255), rim) == 255)
    bands = (fine - middle, core), (coarser_band, core[::2, ::2])
    finer, coarser = (
        energy(band, where.view(np.uint8)) / num if (num := int(where.sum())) else math.nan
        for band, where in bands
    )
    return Quality(
        focus=finer / coarser if coarser else math.nan,
        exposure=float(shares @ np.arange(256)) / 255,
        underexposed_fraction=float(shares[:DARK].sum()),
        overexposed_fraction=float(shares[BRIGHT:].sum()),
        readable_fraction=_readable(half, coarser_band, core[::2, ::2]),
    )


class Reduced(NamedTuple):
    """A photograph at the size where it is assessed."""

    green: Image8
    """[s, s] uint8."""
    fov: Image8
    """[s, s] uint8: above HALF inside."""
    soft: Plane
    """[s, s] float32: green after a Gaussian of sigma 1 px."""


def reduce_canvas(canvas: Image8, fov: Image8) -> Reduced:
    """canvas [S, S, 3] uint8 RGB and its field [S, S], as assess_quality has them."""
    inside = fov > HALF
    top, left, bottom, right = fov_box(inside) if inside.any() else (0, 0, 0, 0)
    green = np.asarray(cv2.extractChannel(canvas, GREEN), np.uint8)
    if (extent := max(bottom - top, right - left)) >= LARGE * DIAMETER:
        side = round(len(fov) * DIAMETER / extent)
        green, fov = averaged(green, side), averaged(fov, side)
    return Reduced(green, fov, np.asarray(cv2.GaussianBlur(green.astype(np.float32), (7, 7), 1.0)))


def averaged(plane: Image8, side: int) -> Image8:
    """plane [S, S] uint8 -> [side, side], of which each pixel is the mean of its area."""
    if not kernels.missing() and min(plane.shape) > side and len(plane) % side:
        return kernels.averaged(plane, side, side)
    return np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def energy(plane: npt.NDArray[Any], where: Image8) -> float:
    """The sum of a plane's squares where another is not 0."""
    return float(cv2.norm(plane, cv2.NORM_L2SQR, where))


def _readable(green: Plane, band: Plane, inside: Mask) -> float:
    """Share of `inside` [h, w] where the mean of `green` lies between DARK and BRIGHT, and the root
    mean square of `band`, the scale of vessels, is at least FLAT of that mean; both around each px.
    """
    if not inside.any():
        return math.nan
    share = inside.astype(np.float32)
    size = (LOCAL_PX // 2,) * 2
    around = np.maximum(cv2.blur(share, size), 1e-6)
    mean = cv2.blur(green * share, size) / around
    power = cv2.blur(band**2 * share, size) / around
    readable = (mean >= DARK) & (mean <= BRIGHT) & (power >= (FLAT * mean) ** 2)
    return float(np.count_nonzero(readable & inside) / np.count_nonzero(inside))
