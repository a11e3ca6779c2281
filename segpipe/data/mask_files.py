"""A mask's file, made anywhere -> its vessels, and its field of view where it says so.

Three kinds are read. Classes, as segpipe writes them: 0 outside the field of view, 1 vessel, 2
background, also in the colours of its palette, black, white and mid-grey. Its pictures of arteries
and veins, which are known by their palette. And binary ones, vessels
white on black, 1 on 0, or in the colours of a scheme, which say nothing of the field. What has
other values is rejected, never guessed at.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from segpipe.data.arrays import Image8, Mask
from segpipe.data.classes import BACKGROUND, OUTSIDE, VESSEL
from segpipe.data.codecs import (
    KINDS_PALETTE,
    MASK_PALETTE,
    PNG_SIGNATURE,
    WHITE,
    decode_image,
)
from segpipe.data.colours import FLAG, Scheme
from segpipe.data.drawings import SHARE, Drawing, NotTwoValued, read_drawing
from segpipe.data.headers import png_palette
from segpipe.data.photograph import MAX_MEGAPIXELS
from segpipe.errors import Fault, RejectedImage

LEVELS = MASK_PALETTE[::3]  # of the palette's greys, by class


@dataclass(frozen=True)
class MaskFile:
    """A decoded mask, on the pixels that its file stores."""

    vessel: Mask
    """[H, W]"""
    fov: Mask | None
    """[H, W]: the field of view, None where the file is binary."""
    kinds: Image8 | None = None
    """[H, W]: 0 outside, 1 artery, 2 vein, 3 crossing, 4 background; None without such colours."""
    note: str = ""
    """What to know about it, or ''."""


def read_mask(
    data: bytes, scheme: Scheme | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> MaskFile:
    """An encoded mask -> its vessels, and its field where it has classes.

    Raises RejectedImage for what is no image, and for values that have no known meaning.
    """
    rgb = decode_image(data, max_megapixels)
    palette = png_palette(data) if data.startswith(PNG_SIGNATURE) else b""
    if palette == bytes(KINDS_PALETTE):
        kinds = kinds_in(rgb)
        return MaskFile((kinds > 0) & (kinds < len(KINDS_PALETTE) // 3 - 1), kinds > 0, kinds)
    classes = _classes(rgb, palette == bytes(MASK_PALETTE))
    if classes is not None:
        return MaskFile(classes == VESSEL, classes != OUTSIDE)
    drawing = _drawing(data, scheme)
    note = f"{drawing.grey:.1%} of what is drawn is grey, cut in the middle"
    return MaskFile(drawing.foreground, None, note=note if drawing.grey > SHARE else "")


def kinds_in(rgb: Image8) -> Image8:
    """rgb [H, W, 3] in KINDS_PALETTE -> the kind of each pixel [H, W]."""
    kinds = np.zeros(rgb.shape[:2], np.uint8)
    for kind in range(1, len(KINDS_PALETTE) // 3):
        kinds[(rgb == KINDS_PALETTE[3 * kind : 3 * kind + 3]).all(axis=2)] = kind
    return kinds


def _classes(rgb: Image8, own: bool) -> Image8 | None:
    """rgb [H, W, 3] -> class of each pixel [H, W]; None where the background is none of them.

    Mid-grey alone is the background in segpipe's `own` palette, and elsewhere where white is too.
    """
    levels = np.ascontiguousarray(rgb[..., 0])
    if not (rgb[..., 1] == levels).all() or not (rgb[..., 2] == levels).all():
        return None
    used = set(np.flatnonzero(np.bincount(levels.ravel(), minlength=WHITE + 1)).tolist())
    if BACKGROUND in used and used <= {OUTSIDE, VESSEL, BACKGROUND}:
        return levels
    if LEVELS[BACKGROUND] in used <= set(LEVELS) and (own or LEVELS[VESSEL] in used):
        class_of = np.zeros(WHITE + 1, np.uint8)
        class_of[list(LEVELS)] = OUTSIDE, VESSEL, BACKGROUND
        return np.asarray(class_of[levels])
    return None


def _drawing(data: bytes, scheme: Scheme | None) -> Drawing:
    """A binary mask."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawing = read_drawing(data, scheme)
    except NotTwoValued as error:
        classes = ", or the classes 0, 1 and 2 in 8 bits"
        help_ = f", {FLAG} says what colours mean" if error.coloured else classes
        raise RejectedImage(error.fault, f"{error}{help_}") from error
    except (RejectedImage, MemoryError):
        raise
    except Exception as error:  # Pillow's, of a file that was just decoded
        raise RejectedImage(
            Fault.UNKNOWN_FORMAT, "not in a format that masks are read from, such as PNG or TIFF"
        ) from error
    if drawing.problem:
        raise RejectedImage(Fault.INVALID_PIXEL_VALUES, drawing.text)
    return drawing
