"""Drawings of vessels and masks: file -> bool, and whether the photograph's contrast says the same.

A drawing has two values: black and white, black and 1, or black and the colours of a scheme that is
known. What else it holds is told, never guessed at.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.canvas import scale_to
from segpipe.data.codecs import FORMATS, WHITE
from segpipe.data.colours import BLACK, MEANINGS, Scheme, in_hex
from segpipe.data.depth import FULL_RANGE
from segpipe.data.fov import fov_diameter
from segpipe.data.photograph import MAX_MEGAPIXELS, TURNED_BACK, check_area
from segpipe.data.pictures import turned_by_pillow
from segpipe.errors import Fault, RejectedImage

DIAMETER = 540.0  # px: the field of DRIVE, at whose scale the next two are
BLUR_PX = 8.0  # standard deviation: wider than a vessel
RING_PX = 5  # around vessels: the background that they are compared with
SAME_PLACE = 0.3  # contrast: 0.64 to 2.42 on DRIVE, STARE and HRF, of wrong pairs at most 0.12
GREY = 64, 192  # levels between: neither black nor white, nor what JPEG leaves beside an edge
TOUCH = 8  # levels between the channels of a black: (4, 2, 4) in DRIVE's 2nd_manual
COLOUR = 48  # levels between the channels of a pixel: more than JPEG leaves in a grey picture
NEAR = 64  # levels, in any channel, from a colour that a pixel is taken for
SHARE = 0.01  # of the drawn pixels: what is rarer is dirt
FEW_VALUES = 16  # of a drawing without a camera's or a JPEG's grey
BIN = 8  # levels of a bin in which greys are counted
PEAK = 0.6  # of the greys, in a quarter of their range: a level of its own, no soft edges
GREY_MODES = "1", "L", "LA", "La"  # of Pillow, in 8 bits
NUMBERS = "I", "F"  # its modes of more bits begin so


class NotTwoValued(RejectedImage):
    """A drawing whose values have no known meaning: they are colours, or all of them dark."""

    def __init__(self, text: str, coloured: bool = False) -> None:
        super().__init__(Fault.INVALID_PIXEL_VALUES, text)
        self.coloured = coloured
        """Whether a scheme of colours would help."""


@dataclass(frozen=True)
class Drawing:
    """A decoded drawing, on the pixels that its file stores."""

    foreground: Mask
    """[H, W] bool: a vessel, or inside the field of view."""
    problem: str = ""
    """What keeps it from being two-valued for sure: transparency or values; mostly empty."""
    text: str = ""
    """The same in words."""
    grey: float = 0.0
    """Share of pixels between two values among those that are not black, as JPEG makes of edges."""
    coloured: bool = False
    """Whether it was read by its colours."""
    meanings: Image8 | None = None
    """[H, W] of one that was: 0 background, else 1 + the place of what its colour means in
    colours.MEANINGS."""


def read_drawing(data: bytes, scheme: Scheme | None = None) -> Drawing:
    """An encoded drawing, whatever its palette -> what is drawn: white on black, or 1 on 0.

    Of a file with colours all that `scheme` names is drawn. Grey is cut in the middle. It lies on
    the pixels that its file stores, as a photograph does. Raises NotTwoValued where values have no
    known meaning, and what Pillow raises for what is no image.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        check_area(picture.width * picture.height, MAX_MEGAPIXELS)
        turned = TURNED_BACK.get(turned_by_pillow(picture))  # before it is decoded
        clear = "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info
        alpha = np.asarray(picture.convert("RGBA").getchannel("A")) if clear else None
        has_colours = picture.mode not in GREY_MODES and not picture.mode.startswith(NUMBERS)
        rgb = picture.convert("RGB") if has_colours else None
        levels = _levels(picture)
    drawing = None
    if rgb is not None:
        drawing = _by_colours(np.asarray(rgb), scheme)
    if drawing is None:
        drawing = _by_levels(levels)
    if alpha is not None and _shows_more(alpha > WHITE // 2, drawing.foreground):
        text = "its transparency shows what its colours do not, save it as white on black without"
        drawing = replace(drawing, problem="transparency", text=text)
    if turned is None:
        return drawing
    foreground, meanings = (
        None if plane is None else np.asarray(Image.fromarray(plane).transpose(turned))
        for plane in (drawing.foreground.view(np.uint8), drawing.meanings)
    )
    assert foreground is not None
    return replace(drawing, foreground=foreground.view(bool), meanings=meanings)


def _levels(picture: Image.Image) -> Image8:
    """-> [H, W] uint8. Numbers of 16 bits and more are levels up to 255, and else are scaled."""
    if not picture.mode.startswith(NUMBERS):
        return np.asarray(picture.convert("L"))
    values: npt.NDArray[Any] = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= FULL_RANGE:  # NaN too
        raise NotTwoValued(f"holds {low:g} to {high:g}, wanted 0 and {WHITE}")
    if high <= 1 and values.dtype.kind == "f" and not np.isin(values, (0, 1)).all():
        values = values * np.float32(WHITE)  # probabilities, as a photograph's floats are read
    elif high > WHITE:
        values = values * np.float32(WHITE / FULL_RANGE)
    if values.dtype.kind == "f":
        values = np.rint(values)
    return values.astype(np.uint8)


def _by_levels(levels: Image8) -> Drawing:
    """levels [H, W] -> what is white, or 1 where there is nothing else but 0."""
    counts = np.bincount(levels.ravel(), minlength=WHITE + 1)
    used = np.flatnonzero(counts)
    if used[-1] <= 1:
        return Drawing(levels == 1)
    if used[-1] <= WHITE // 2:
        words = _listed([str(level) for level in used[np.argsort(-counts[used], kind="stable")]])
        raise NotTwoValued(f"holds {words}, wanted 0 and {WHITE}, or 0 and 1")
    light = levels > WHITE // 2
    drawn = max(1, int(counts[GREY[0] :].sum()))
    grey = int(counts[slice(*GREY)].sum())
    many = [int(level) for level in used if counts[level] > SHARE * drawn]
    third_level = len(used) <= FEW_VALUES and len(many) > 2
    if third_level or (grey > SHARE * drawn and _peaked(counts)) or grey > drawn / 2:
        words = _listed([str(level) for level in sorted(many, key=lambda level: -counts[level])])
        return Drawing(light, "values", f"holds {words}, wanted two: 0 and {WHITE}")
    return Drawing(light, grey=grey / drawn)


def _listed(values: list[str], most: int = 4) -> str:
    """The first of some values in order of size, and how many more there are."""
    words = ", ".join(sorted(values[:most], key=lambda value: (len(value), value)))
    return words + (f" and {len(values) - most} more values" if len(values) > most else "")


def _by_colours(rgb: Image8, scheme: Scheme | None) -> Drawing | None:
    """rgb [H, W, 3] -> all that has a colour of the scheme; None where there are no colours.

    Raises NotTwoValued for colours without a scheme, or that are not the scheme's.
    """
    if (rgb == rgb[..., :1]).all():
        return None
    packed = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    codes, counts = np.unique(packed, return_counts=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    lightest, spread = colours.max(axis=1), np.ptp(colours, axis=1)
    if len(codes) <= FEW_VALUES:  # no JPEG, whose greys have a touch of colour: dark ones count
        touch = np.maximum(lightest / 4, min(TOUCH, int(lightest.max()) / 4))
        drawn, coloured = counts[lightest > 0].sum(), spread > touch
    else:
        drawn, coloured = counts[lightest >= GREY[0]].sum(), spread > COLOUR
    if counts[coloured].sum() <= SHARE * drawn:
        return None
    if scheme is None:
        raise NotTwoValued(f"holds {_colours(codes, counts, coloured)}", coloured=True)
    known = np.array([BLACK, *scheme.colours()])
    distance = np.abs(colours[:, None] - known).max(axis=2)
    strange = distance.min(axis=1) > NEAR
    off = int(counts[strange].sum())
    if off > SHARE * drawn:
        words = _colours(codes, counts, strange)
        raise NotTwoValued(f"holds {words}, of no meaning in {scheme}", coloured=True)
    of_colour = np.array([0, *map(scheme.code, scheme.colours())], np.uint8)
    meaning = of_colour[distance.argmin(axis=1)]
    meaning[strange & (meaning > 0)] = 1 + MEANINGS.index("uncertain")
    meanings = meaning[np.searchsorted(codes, packed)]
    return Drawing(meanings > 0, grey=off / drawn, coloured=True, meanings=meanings)


def _colours(codes: npt.NDArray[Any], counts: npt.NDArray[Any], which: Mask) -> str:
    """The most frequent of these colours, as "colours FF0000, 0000FF"."""
    codes, counts = codes[which], counts[which]
    most = codes[np.argsort(-counts, kind="stable")][:4]
    words = ", ".join(in_hex((code >> 16, code >> 8 & 255, code & 255)) for code in most.tolist())
    more = f" and {len(codes) - 4} more" if len(codes) > 4 else ""
    return f"colour{'s' * (len(codes) > 1)} {words}{more}"


def _shows_more(opaque: Mask, light: Mask) -> bool:
    """Whether transparency draws something else than the colours do."""
    drawn = opaque.any() and not opaque.all()
    return bool(drawn and (opaque != light).any() and (opaque == light).any())


def _peaked(counts: npt.NDArray[np.int_]) -> bool:
    """counts [256] of each level -> whether most greys are close to one level."""
    binned = counts[slice(*GREY)].reshape(-1, BIN).sum(axis=1)
    quarter = np.convolve(binned, np.ones(len(binned) // 4, int), "valid")
    return bool(quarter.max() > PEAK * binned.sum())


def contrast(image: Image8, vessel: Mask, fov: Mask) -> float:
    """How much darker drawn vessels are than what is beside them; NaN where nothing is drawn.

    image [H, W, 3] uint8; vessel, fov [H, W] bool. In green, at DRIVE's scale: darkness is what a
    pixel lacks of the blurred field; its mean on the vessels less its mean in a ring around them,
    over its standard deviation in the field. A drawing of another photograph, or one that lies
    elsewhere, comes near 0; black and white the wrong way round, below.
    """
    scale = scale_to(float(fov_diameter(fov)), DIAMETER)
    size = round(fov.shape[1] * scale), round(fov.shape[0] * scale)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    green, drawn = (
        cv2.resize(channel, size, interpolation=how).astype(np.float32)
        for channel in (cv2.extractChannel(image, 1), vessel.view(np.uint8) * np.uint8(WHITE))
    )
    field = cv2.resize(fov.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    inside = field > 0
    drawn *= inside
    on = drawn > 0
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RING_PX + 1,) * 2)
    ring = (cv2.dilate(on.view(np.uint8), disc) > 0) & ~on & inside
    if not on.any() or not ring.any():
        return float("nan")
    weight = inside.astype(np.float32)
    darkness = _blurred(green * weight) / np.maximum(_blurred(weight), 0.01) - green
    on_vessels = (drawn * darkness).sum() / drawn.sum()
    spread = max(float(darkness[inside].std()), 1e-6)
    return float(on_vessels - darkness[ring].mean()) / spread


def _blurred(values: Plane) -> Plane:
    """By a Gaussian of BLUR_PX, at a quarter of the size, which takes a tenth of the time."""
    height, width = values.shape
    small = cv2.resize(values, (-(-width // 4), -(-height // 4)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), BLUR_PX / 4)
    return np.asarray(cv2.resize(small, (width, height)), np.float32)
