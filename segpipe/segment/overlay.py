"""A photograph with what was found drawn in: for people, not for measuring."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from segpipe.data.arrays import Image8
from segpipe.data.canvas import Geometry
from segpipe.html import jpeg_file
from segpipe.measurement.names import ZONES

VESSEL_COLOUR = (0, 255, 170)  # green-blue: the one hue a retina does not have
KIND_COLOURS = ((255, 45, 45), (70, 120, 255), (0, 255, 0))
"""Of arteries, veins and crossings."""
DISC_COLOUR, ZONE_COLOUR = (255, 225, 60), (255, 255, 255)
ZONE_EDGES = sorted({edge for edges in ZONES.values() for edge in edges})
FINER = 4  # bits: lines are drawn to a sixteenth of a px
SIDE_PX = 512  # most of a picture's longer side

Layer = tuple[tuple[int, int, int], Image8]
"""A colour, and how much of each pixel [h, w] uint8 has it, 255 all."""
Ellipse = tuple[float, float, float, float]
"""Centre x and y, width and height, in px; pixels' centres are whole."""


def drawn(
    image: Image8, layers: Sequence[Layer], disc: Ellipse | None = None, orientation: int = 1
) -> Image.Image:
    """image [h, w, 3] uint8 with its layers, the disc's margin and the zones' edges, as viewers
    show a file of this EXIF orientation (1 to 8)."""
    picture = Image.fromarray(image)
    for colour, share in layers:
        picture.paste(colour, (0, 0), Image.fromarray(share))
    if disc is not None:
        pixels = np.array(picture)
        x, y, width, height = disc
        size = (width + height) / 2
        for edge in ZONE_EDGES:
            across = (1 + 2 * edge) * size
            _ellipse(pixels, (x, y, across, across), ZONE_COLOUR)
        _ellipse(pixels, disc, DISC_COLOUR)
        picture = Image.fromarray(pixels)
    return upright(picture, orientation)


def _ellipse(pixels: Image8, ellipse: Ellipse, colour: tuple[int, int, int]) -> None:
    x, y, width, height = (round(value * (1 << FINER)) for value in ellipse)
    axes = width // 2, height // 2
    cv2.ellipse(pixels, (x, y), axes, 0, 0, 360, colour, 1, cv2.LINE_AA, FINER)


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(picture)


def of_canvas(
    canvas: Image8,
    geometry: Geometry,
    layers: Sequence[Layer],
    disc: Ellipse | None,
    orientation: int,
) -> bytes:
    """canvas [S, S, 3] uint8, layers and disc on it -> a JPEG of the field, SIDE_PX at most."""
    height, width = geometry.scaled_height, geometry.scaled_width
    factor = min(1.0, SIDE_PX / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))

    def reduced(pixels: Image8) -> Image8:
        box = np.ascontiguousarray(pixels[:height, :width])
        return np.asarray(cv2.resize(box, size, interpolation=cv2.INTER_AREA), np.uint8)

    small = [(colour, reduced(share)) for colour, share in layers]
    place = disc
    if disc is not None:
        x, y = ((value + 0.5) * factor - 0.5 for value in disc[:2])
        place = x, y, disc[2] * factor, disc[3] * factor
    return jpeg_file(drawn(reduced(canvas), small, place, orientation))
