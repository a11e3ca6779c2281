"""What every reader of a file gives, and the limits that every one of them keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from segpipe.data.arrays import Image8
from segpipe.errors import Fault, RejectedImage

MAX_MEGAPIXELS = 200.0  # of a picture, where nothing else is said
SMALLEST_SIDE = 16  # px: the search for the field of view wipes out what is thinner than 9
TURNED_BACK = {  # EXIF's orientation -> what undoes the turn for display
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
TURNED_FOR_DISPLAY = TURNED_BACK | {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}


@dataclass(frozen=True)
class Acquisition:
    """What a file says of how it was taken, None where it says nothing; never of whom."""

    laterality: str | None = None
    """R, L or B: the right eye, the left one, both."""
    pixel_spacing_mm: float | None = None
    """From one pixel's centre to the next, in the retina."""
    device: str | None = None
    """Manufacturer and model."""
    acquired: str | None = None
    """Date and time as ISO 8601 has them; the device's own clock where no zone is given."""


NOTHING_SAID = Acquisition()


@dataclass(frozen=True)
class Photograph:
    """A decoded file, on the grid of pixels that the file stores."""

    picture: Image.Image
    """[H, W] of mode RGB, not turned. Pillow's, as an array of it is a copy, and back another."""
    orientation: int
    """How EXIF says to turn it for display, 1 to 8; 1, as it is, where it says nothing valid."""
    note: str
    """What a reader of the results should know, as "first of 3 pages"; mostly empty."""
    size: tuple[int, int]
    """H, W of the file."""
    reduction: int = 1
    """How many of the file's pixels on each side make one of the picture's: 1, 2, 4 or 8."""
    acquisition: Acquisition = NOTHING_SAID
    """How it was taken."""

    @property
    def image(self) -> Image8:
        """The picture as an array [H, W, 3] uint8."""
        return np.asarray(self.picture)

    @property
    def shown(self) -> Image8:
        """The picture as viewers show it, turned by its orientation: [H, W, 3] or [W, H, 3]."""
        if self.orientation == 1:
            return self.image
        return np.asarray(self.picture.transpose(TURNED_FOR_DISPLAY[self.orientation]))


def joined(*notes: str) -> str:
    """Several notes as one; empty ones do not count."""
    return "; ".join(filter(None, notes))


def check_size(width: int, height: int, max_megapixels: float) -> None:
    """Raises RejectedImage for a frame of `width` x `height` px that is too small or too large."""
    if min(width, height) < SMALLEST_SIDE:
        raise RejectedImage(Fault.TOO_SMALL, f"too small: a side of less than {SMALLEST_SIDE} px")
    check_area(width * height, max_megapixels)


def check_area(num_pixels: int, max_megapixels: float) -> None:
    """Raises RejectedImage for more pixels than that; of a tile, of all frames, of a picture."""
    if num_pixels > max_megapixels * 1e6:
        raise RejectedImage(
            Fault.TOO_MANY_PIXELS, f"more megapixels than --max-megapixels {max_megapixels:g}"
        )
