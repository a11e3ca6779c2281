"""Whether a drawing of vessels can be right: its file's values, and its photograph's contrast."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segpipe.data.canvas import scale_to
from segpipe.data.codecs import FORMATS, WHITE
from segpipe.data.fov import fov_diameter

DIAMETER = 540.0  # px: the field of DRIVE, at whose scale the next two are
BLUR_PX = 8.0  # standard deviation: wider than a vessel
RING_PX = 5  # around vessels: the background that they are compared with
SAME_PLACE = 0.3  # contrast: 0.64 to 2.42 on DRIVE, STARE and HRF, of wrong pairs at most 0.12
GREY = 64, 192  # levels between: neither black nor white, nor what JPEG leaves beside an edge
COLOUR = 48  # levels between the channels of a pixel: more than JPEG leaves in a grey picture
SHARE = 0.01  # of the drawn pixels: what is rarer is dirt
FEW_VALUES = 16  # of a drawing without a camera's or a JPEG's grey
BIN = 8  # levels of a bin in which greys are counted
PEAK = 0.6  # of the greys, in a quarter of their range: a level of its own, no soft edges

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Values:
    """What a drawing's file holds beside black and white."""

    kind: str = ""
    """What keeps it from being read as one: transparency, colours or values; mostly empty."""
    text: str = ""
    """The same in words."""
    grey: float = 0.0
    """Share of grey among its pixels that are not black, as JPEG makes of edges."""


def values_of(data: bytes) -> Values:
    """Look at an encoded drawing as it was saved. Raises what Pillow raises for what is no image.

    decode_binary drops transparency, makes grey of colours and cuts grey in the middle; here that
    is told where it changes what is drawn.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        if picture.mode == "1" and "transparency" not in picture.info:
            return Values()
        clear = "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info
        alpha = np.asarray(picture.convert("RGBA").getchannel("A")) if clear else None
        has_colours = picture.mode not in ("1", "L", "LA", "La", "I", "I;16", "F")
        rgb = picture.convert("RGB") if has_colours else None
        levels = picture.convert("L")
    if alpha is not None and _shows_more(alpha > WHITE // 2, np.asarray(levels) > WHITE // 2):
        return Values(
            "transparency",
            "its transparency shows what its colours do not, save it as white on black without",
        )
    if rgb is not None:
        channels = np.asarray(rgb)
        spread = channels.max(axis=2) - channels.min(axis=2)
        coloured = channels[spread > COLOUR]
        if len(coloured) > SHARE * (channels.max(axis=2) >= GREY[0]).sum():
            return Values("colours", f"has colours {_named(coloured)}, wanted white on black")
    counts = np.array(levels.histogram())
    drawn = max(1, int(counts[GREY[0] :].sum()))
    grey = int(counts[slice(*GREY)].sum())
    used = np.flatnonzero(counts)
    many = [int(level) for level in used if counts[level] > SHARE * drawn]
    third_level = len(used) <= FEW_VALUES and len(many) > 2
    if third_level or (grey > SHARE * drawn and _peaked(counts)) or grey > drawn / 2:
        most = sorted(sorted(many, key=lambda level: -counts[level])[:4])
        told = ", ".join(map(str, most))
        told += f" and {len(many) - 4} more values" if len(many) > 4 else ""
        return Values("values", f"holds {told}, wanted two: 0 and {WHITE}")
    return Values(grey=grey / drawn)


def _shows_more(opaque: Mask, light: Mask) -> bool:
    """Whether transparency draws something else than the colours do."""
    drawn = opaque.any() and not opaque.all()
    return bool(drawn and (opaque != light).any() and (opaque == light).any())


def _peaked(counts: npt.NDArray[np.int_]) -> bool:
    """counts [256] of each level -> whether most greys are close to one level."""
    binned = counts[slice(*GREY)].reshape(-1, BIN).sum(axis=1)
    quarter = np.convolve(binned, np.ones(len(binned) // 4, int), "valid")
    return bool(quarter.max() > PEAK * binned.sum())


def _named(colours: npt.NDArray[np.uint8]) -> str:
    """Colours [n, 3] -> the most frequent, as "(255, 0, 0), (0, 0, 255)"."""
    found, counts = np.unique(colours.astype(int) @ (1 << 16, 1 << 8, 1), return_counts=True)
    most = found[np.argsort(-counts, kind="stable")][:3]
    told = ", ".join(f"({rgb >> 16}, {rgb >> 8 & 255}, {rgb & 255})" for rgb in most)
    return told if len(found) <= 3 else f"{told} and {len(found) - 3} more colours"


def contrast(image: npt.NDArray[np.uint8], vessel: Mask, fov: Mask) -> float:
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


def _blurred(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """By a Gaussian of BLUR_PX, at a quarter of the size, which takes a tenth of the time."""
    height, width = values.shape
    small = cv2.resize(values, (-(-width // 4), -(-height // 4)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), BLUR_PX / 4)
    return np.asarray(cv2.resize(small, (width, height)), np.float32)
