"""A field of view put on the network's canvas, and the exact inverse.

A network sees every camera at much the same scale: the field is cropped out with a margin and
scaled so that its diameter equals the working diameter, and it lies on a square canvas whose size
that diameter alone decides, so that images of any size never depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from segpipe import kernels
from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.classes import OUTSIDE, classes_of
from segpipe.data.fov import fov_box, fov_diameter
from segpipe.data.pillow_memory import pixels_of

SAME_SCALE = 0.02  # within 2 % of the working diameter an image is not resampled
MARGIN_PX = 6  # canvas px kept around the field, so that its rim is seen against what is outside it
REDUCING_GAP = 2.0  # Pillow first halves by boxes down to twice the size: half the time
CANVAS_STEP = 32  # px: five poolings by 2 divide the canvas


class Working(NamedTuple):
    """A network's working diameters, px: a field is scaled to the nearest of this range."""

    least: float
    most: float

    @classmethod
    def of(cls, diameter: Diameter) -> Working:
        return diameter if isinstance(diameter, Working) else cls(diameter, diameter)

    def near(self, field_px: float) -> float:
        """The working diameter for a field that has so many px across."""
        return min(max(field_px, self.least), self.most)


Diameter = float | Working
"""One working diameter for all fields, px, or a range of them."""


def scale_to(diameter: float, working_diameter: float) -> float:
    """The factor that takes `diameter` to the working diameter; 1.0 within 2 % of it."""
    scale = working_diameter / diameter
    return 1.0 if abs(scale - 1) <= SAME_SCALE else scale


def canvas_side(working_diameter: float) -> int:
    """Side in px of the square canvas that holds every field at this working diameter."""
    needed = working_diameter * (1 + SAME_SCALE) + 2 * MARGIN_PX + 2
    return -(-int(np.ceil(needed)) // CANVAS_STEP) * CANVAS_STEP


@dataclass(frozen=True)
class Geometry:
    """Where a canvas came from: native size, the box cut out of it, that box's size when scaled.

    All in px. The scaled box lies in the canvas's upper left corner, zeros fill the rest.
    """

    height: int
    width: int
    top: int
    left: int
    box_height: int
    box_width: int
    scaled_height: int
    scaled_width: int

    def to_list(self) -> list[int]:
        """In the order of the fields: how it travels between processes."""
        return list(astuple(self))

    @classmethod
    def from_list(cls, values: Iterable[int]) -> Geometry:
        return cls(*map(int, values))

    @property
    def resampled(self) -> bool:
        return (self.scaled_height, self.scaled_width) != (self.box_height, self.box_width)

    @property
    def enlarges(self) -> bool:
        """Whether a canvas becomes no smaller on its way to native size."""
        return self.scaled_height <= self.box_height and self.scaled_width <= self.box_width


def plan_fit(
    fov: Mask,
    working_diameter: float,
    size: tuple[int, int] | None = None,
    reduction: int = 1,
    diameter: int | None = None,
) -> Geometry:
    """How the field of fov [H, W] bool goes onto the canvas of this working diameter (px).

    `size` is the photograph's height and width where fov is that of one reduced by `reduction`;
    `diameter` is fov's own (`fov_diameter`), where it is at hand.
    """
    height, width = size or fov.shape
    found = fov_box(fov)
    scale = scale_to(reduction * (diameter or fov_diameter(fov, found)), working_diameter)
    top, left, bottom, right = (reduction * edge for edge in found)
    margin = round(MARGIN_PX / scale)
    top, left = max(0, top - margin), max(0, left - margin)
    bottom, right = min(height, bottom + margin), min(width, right + margin)
    box = bottom - top, right - left
    scaled = max(1, round(box[0] * scale)), max(1, round(box[1] * scale))
    return Geometry(height, width, top, left, *box, *scaled)


def fit_image(
    image: Image8 | Image.Image,
    geometry: Geometry,
    side: int,
    reduction: int = 1,
    into: Image8 | None = None,
) -> Image8:
    """image [H, W, 3] uint8 -> canvas [side, side, 3] uint8 (antialiased where scaled).

    The image may also be Pillow's, of mode RGB, and one reduced by `reduction`; so too a fov. What
    `into` [side, side, 3] held is lost, where it is given; so too a fov's.
    """
    return _fit(image, geometry, side, Image.Resampling.BILINEAR, reduction, into)


def fit_fov(
    fov: Mask, geometry: Geometry, side: int, reduction: int = 1, into: Image8 | None = None
) -> Image8:
    """fov [H, W] bool -> canvas [side, side] uint8, 255 inside, soft at the rim where scaled."""
    grey = np.negative(fov.view(np.uint8))  # 1 becomes 255
    return _fit(grey, geometry, side, Image.Resampling.BILINEAR, reduction, into)


def fit_classes(classes: Image8, geometry: Geometry, side: int) -> Image8:
    """A class map [H, W] uint8 -> canvas [side, side] uint8; nearest neighbour, 0 outside."""
    return _fit(classes, geometry, side, Image.Resampling.NEAREST)


def plan_field(fov: Mask, working: Diameter) -> tuple[Geometry, int]:
    """How the field of fov [H, W] bool goes onto the canvas of its working diameter, and that
    canvas's side in px."""
    field_px = fov_diameter(fov)
    diameter = Working.of(working).near(field_px)
    return plan_fit(fov, diameter, diameter=field_px), canvas_side(diameter)


def fit_field(image: Image8, fov: Mask, working: Diameter) -> tuple[Image8, Image8, Geometry]:
    """image [H, W, 3] uint8 and its field [H, W] bool -> both on the canvas of its working
    diameter, as fit_image and fit_fov have them, and how they came there."""
    geometry, side = plan_field(fov, working)
    return fit_image(image, geometry, side), fit_fov(fov, geometry, side), geometry


def padded(plane: Image8, side: int) -> Image8:
    """plane [S, S, ...] -> [side, side, ...], 0 beyond it: canvases of several sizes in a batch."""
    more = side - len(plane)
    return np.pad(plane, [(0, more), (0, more), *[(0, 0)] * (plane.ndim - 2)]) if more else plane


def _fit(
    pixels: Image8 | Image.Image,
    geometry: Geometry,
    side: int,
    resampling: Image.Resampling,
    reduction: int = 1,
    into: Image8 | None = None,
) -> Image8:
    g, r = geometry, reduction
    left, top = g.left // r, g.top // r
    right, bottom = -(-(g.left + g.box_width) // r), -(-(g.top + g.box_height) // r)
    bands = (3,) if isinstance(pixels, Image.Image) else pixels.shape[2:]
    canvas = np.empty((side, side, *bands), np.uint8) if into is None else into
    canvas[g.scaled_height :], canvas[: g.scaled_height, g.scaled_width :] = 0, 0
    fitted = canvas[: g.scaled_height, : g.scaled_width]
    inset = g.left / r - left, g.top / r - top
    box = (*inset, inset[0] + g.box_width / r, inset[1] + g.box_height / r)
    cut, size = (bottom - top, right - left), (g.scaled_height, g.scaled_width)
    bilinear = resampling == Image.Resampling.BILINEAR
    quick = bilinear and kernels.resizes(cut, *size, box) and not kernels.missing()
    if g.resampled and not quick:
        picture = _cut(pixels, (left, top, right, bottom))
        fitted[:] = np.asarray(picture.resize(size[::-1], resampling, box, REDUCING_GAP))
        return canvas
    if isinstance(pixels, Image.Image):
        part = pixels_of(pixels, (left, top, right, bottom))
    else:
        part = pixels[top:bottom, left:right]
    if g.resampled:
        kernels.resized(part, *size, box, fitted)
    else:
        fitted[:] = part
    return canvas


def _cut(pixels: Image8 | Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    if isinstance(pixels, Image.Image):
        return pixels.crop(box)
    left, top, right, bottom = box
    return Image.fromarray(pixels[top:bottom, left:right])


def restore(canvas: Plane, geometry: Geometry) -> Plane:
    """A score canvas [side, side] float32 -> [H, W] float32 at native size, 0 outside the box."""
    g = geometry
    native = np.zeros((g.height, g.width), np.float32)
    native[g.top : g.top + g.box_height, g.left : g.left + g.box_width] = _restore_box(canvas, g)
    return native


def _restore_box(canvas: Plane, geometry: Geometry) -> Plane:
    g = geometry
    box = canvas[: g.scaled_height, : g.scaled_width]
    if not g.resampled:
        return box
    picture = Image.fromarray(np.ascontiguousarray(box))
    return np.asarray(picture.resize((g.box_width, g.box_height), Image.Resampling.BILINEAR))


def native_mask(score: Plane, fov: Image8, geometry: Geometry, threshold: float) -> Image8:
    """score [S, S] float32, fov [S, S] (255 inside) on the canvas -> mask [H, W], class of each px.

    The one rule: outside the field of view 0, inside it vessel where the score at native size
    reaches the threshold, background elsewhere. 12 megapixels take 3 ms compiled, else 100 ms.
    """
    if not kernels.missing():
        return kernels.native_mask(score, fov, np.asarray(geometry.to_list(), np.int32), threshold)
    return plain_native_mask(score, fov, geometry, threshold)


def plain_native_mask(score: Plane, fov: Image8, geometry: Geometry, threshold: float) -> Image8:
    """native_mask by Pillow."""
    g = geometry
    inside = _restore_box(fov.astype(np.float32), g) > 127
    vessel = _restore_box(score, g) >= np.float32(threshold)
    mask = np.full((g.height, g.width), OUTSIDE, np.uint8)
    mask[g.top : g.top + g.box_height, g.left : g.left + g.box_width] = classes_of(vessel, inside)
    return mask


def native_score(score: Plane, mask: Image8, geometry: Geometry) -> Image8:
    """score [S, S] float32 in [0, 1] on the canvas -> [H, W] uint8, 255 for score 1.

    0 outside the field of view, as in mask [H, W], its native_mask.
    """
    if geometry.enlarges and not kernels.missing():
        return kernels.native_score(score, mask, np.asarray(geometry.to_list(), np.int32))
    return plain_native_score(score, mask, geometry)


def plain_native_score(score: Plane, mask: Image8, geometry: Geometry) -> Image8:
    """native_score by Pillow and numpy."""
    g = geometry
    box = _restore_box(score, g).clip(0, 1)
    box *= np.float32(255)
    levels = np.zeros((g.height, g.width), np.uint8)
    np.rint(
        box,
        out=levels[g.top : g.top + g.box_height, g.left : g.left + g.box_width],
        casting="unsafe",
    )
    levels[mask == OUTSIDE] = 0
    return levels


def resize_image(image: Image8, height: int, width: int) -> Image8:
    """image [H, W, 3] uint8 -> [height, width, 3] uint8, bilinear."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_classes(classes: Image8, height: int, width: int) -> Image8:
    """A class map [H, W] uint8 -> [height, width] uint8, nearest neighbour: no class is mixed."""
    if classes.shape == (height, width):
        return classes
    picture = Image.fromarray(np.ascontiguousarray(classes))
    return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))
