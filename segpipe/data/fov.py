"""The field of view: the aperture through which the retina is seen, found in a photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segpipe import kernels
from segpipe.data.arrays import Image8, Mask
from segpipe.data.circle import fit_circle
from segpipe.data.frames import DARK, SMALLEST_FIELD, corners, inner_field, light_frame, stepping
from segpipe.data.mending import mended
from segpipe.data.others import sorted_parts, split
from segpipe.data.pillow_memory import pixels_of
from segpipe.data.regions import largest_region, opened
from segpipe.data.tissue import dark_tissue, dents
from segpipe.errors import Fault, RejectedImage

SEARCH_PX = 300  # longest side on which the field is searched; its rim is then good to 0.5 %
LIGHT = np.sqrt(np.arange(256, dtype=np.float32))  # of each level of the brightest channel
FRAME_SHARE = 0.01  # of the pixels: so many at least are the frame's, where there is one
BLACK = math.sqrt(DARK)  # 6.5
RIM_SHARE = 0.25  # of the light inside: a soft rim ends there; of 0 to 0.5 good on DRIVE's training
SURE = 0.9  # of a light frame's rim that steps: the tone may tell it better than the threshold
UNCERTAIN = 0.01  # share of the picture: so much is told in a note
MORE_LIT = 0.05  # share of the picture, beside the largest region: a second frame's
CUT_OFF = 0.02  # so much wider than the field its circle is where the field is cut off on two axes

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Field:
    """A photograph's field of view, and what beside it may be one."""

    fov: Mask
    """[H, W], True in the aperture through which the retina is seen."""
    uncertain_fraction: float = 0.0
    """Share of the picture that is left out and may be retina."""
    second_fraction: float = 0.0
    """Share of the picture that other fields have, as of a second eye."""

    @cached_property
    def diameter(self) -> int:
        """Its `fov_diameter`."""
        return fov_diameter(self.fov)

    @property
    def note(self) -> str:
        """What to know about it, or ''."""
        notes = []
        if self.second_fraction:
            notes.append(
                f"a second field of view of {self.second_fraction:.0%} of the picture was left out"
            )
        if self.uncertain_fraction >= UNCERTAIN:
            notes.append(f"{self.uncertain_fraction:.0%} of the picture, left out, may be retina")
        return "; ".join(notes)


def find_fov(image: Image8 | Image.Image, reduction: int = 1) -> Mask:
    """image [H, W, 3] uint8 -> fov [H, W] bool: the aperture through which the retina is seen.

    As `find_field`, which also tells what was left out.
    """
    return find_field(image, reduction).fov


def find_field(image: Image8 | Image.Image, reduction: int = 1) -> Field:
    """image [H, W, 3] uint8 -> its field of view.

    The frame around a fundus photograph is nearly black, the retina is brightest in red; Otsu's
    threshold on the square root of the brightest channel, halved toward the frame's own level,
    parts them. A flat grey or white frame is first taken for black. The largest bright region is
    the field, or the round field inside it where it is a second frame's. It is then mended where
    its rim lies on a circle; where no rim is sharp, dark tissue beside it is told from a frame.
    A photograph without a frame is field all over. Raises RejectedImage where no field is found.

    The image may also be Pillow's, of mode RGB. Where it is one reduced by `reduction`, it is
    searched on as many cells as the whole would be.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = picture.size
    factor = max(1, -(-max(height, width) * reduction // SEARCH_PX))
    if reduction == 1:
        small = np.asarray(picture.reduce(factor))
        size = small.shape[0] * factor, small.shape[1] * factor
    else:
        cells = -(-width * reduction // factor), -(-height * reduction // factor)
        small = _means_of_boxes(picture, *cells)
        size = height, width
    share, uncertain, second = _search(small)
    return Field(_enlarge(share, *size)[:height, :width], uncertain, second)


def _means_of_boxes(picture: Image.Image, width: int, height: int) -> Image8:
    """Pillow's picture of mode RGB -> [height, width, 3] uint8."""
    smaller = width <= picture.width and height <= picture.height
    if smaller and not kernels.missing():
        means = kernels.box_means(pixels_of(picture), height, width)
        if means is not None:
            return means
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))


def _search(image: Image8) -> tuple[Image8, float, float]:
    """image [h, w, 3] uint8 -> the field's share of each pixel, 0 to 255, and Field's fractions."""
    levels = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    if LIGHT[levels.max()] < BLACK:
        raise RejectedImage(Fault.NO_FIELD_OF_VIEW, "no field of view found: the image is black")
    outer = light_frame(image)
    if outer is not None:
        _paint(levels, outer)
    bright, inside, frame = _lit(levels)
    region = largest_region(inside)
    circle, other = fit_circle(region), np.zeros_like(region)
    if circle is None and (two := split(region)) is not None:
        region, other = two
        inside, circle = inside & ~other.view(np.uint8), fit_circle(region)
    rim = 0 if circle is None else stepping(image, circle, np.ones_like(region), region)
    inner = None
    if outer is not None or rim == 0 or bright.mean() - region.mean() > MORE_LIT:
        framed, least = (bright, rim) if outer is None else (bright | outer, int(SURE * rim))
        inner = inner_field(image, framed, least)
    if inner is not None:
        inside, region = inner
        _paint(levels, ~region)
        frame, circle = float(LIGHT[levels[~region]].max()), fit_circle(region)
    if region.mean() < SMALLEST_FIELD:
        raise RejectedImage(
            Fault.NO_FIELD_OF_VIEW,
            f"no field of view found: {region.mean():.1%} of the image is lit",
        )
    uncertain = np.zeros_like(region)
    if rim == 0 and outer is None and inner is None:
        inside, uncertain = dark_tissue(LIGHT[levels], inside)
        region = largest_region(inside)
        circle = fit_circle(region)
    parts = sorted_parts(inside, region, circle, image[..., 1])
    share = mended(parts.field, parts.circle, LIGHT[levels] - np.float32(frame))
    field = share > 127
    uncertain = (uncertain | parts.loose | dents(field)) & ~field
    return share, float(uncertain.mean()), float(((parts.others | other) & ~field).mean())


def _paint(levels: Image8, frame: Mask) -> None:
    """The frame as dark as the darkest of the rest, or darker: then only that is left."""
    darkest = _quantile(_counts(levels[~frame], 256), FRAME_SHARE)
    levels[frame] = round(min(darkest, BLACK) ** 2)


def _lit(levels: Image8) -> tuple[Mask, Image8, float]:
    """levels [h, w] uint8 -> what is brighter than the frame [h, w] bool, less what is thin or soft
    of it [h, w] uint8, and the frame's light.
    """
    counts = _counts(levels, 256)
    frame = _quantile(counts, FRAME_SHARE)
    if frame > BLACK:
        frame = _dark_corners(levels)
    if frame > BLACK:
        everything = np.ones(levels.shape, bool)
        return everything, everything.view(np.uint8), frame
    is_bright = frame + (_otsu(counts) - frame) / 2 < LIGHT  # [256], as all that depends on a level
    bright = is_bright[levels]
    inside = bright & _beside_no_rim(levels, frame**2)
    return bright, opened(inside), frame


def _dark_corners(levels: Image8) -> float:
    """The second darkest corner's light: a field cut off on all sides may show little else."""
    medians = [np.median(levels[corner]) for corner in corners(levels.shape)]
    return float(np.sqrt(sorted(medians)[1]))


def _beside_no_rim(levels: Image8, frame: float) -> Mask:
    """levels [h, w] uint8 -> [h, w] bool, False where most light over the frame is lost in 2 px.

    So a soft rim is cut short, and stray light beside the field is parted from it.
    """
    nearby = cv2.dilate(levels, np.ones((5, 5), np.uint8))
    inside: Mask = levels >= frame + RIM_SHARE * (nearby - np.float32(frame))
    return inside


def _counts(values: npt.NDArray[np.uint8 | np.uint16], num: int) -> npt.NDArray[np.float64]:
    """values [h, w] below `num` -> how often each occurs (exact to 2^24 pixels)."""
    return cv2.calcHist([values], [0], None, [num], [0, num]).ravel().astype(np.float64)


def _quantile(counts: npt.NDArray[np.float64], share: float) -> float:
    """Of the light of the pixels whose levels `counts` [256] counts; linear between two pixels."""
    rank = share * (counts.sum() - 1)
    two = np.searchsorted(np.cumsum(counts), [math.floor(rank), math.ceil(rank)], side="right")
    return float(np.interp(rank % 1, [0, 1], LIGHT[two]))


def _otsu(counts: npt.NDArray[np.float64]) -> float:
    """The threshold with the largest variance between both sides (Otsu 1979, eq. 18)."""
    outermost = LIGHT[np.flatnonzero(counts)[[0, -1]]]
    binned, edges = np.histogram(LIGHT, bins=64, range=tuple(outermost), weights=counts)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(binned)[:-1]
    above = binned.sum() - below
    sums = np.cumsum(binned * centres)
    between = (
        sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    ) ** 2
    return float(edges[1:-1][np.argmax(between * below * above)])


def _enlarge(share: Image8, height: int, width: int) -> Mask:
    full = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
    enlarged: Mask = np.asarray(full, np.uint8) > 127
    return enlarged


def fov_box(fov: Mask) -> Box:
    """fov [H, W] bool -> (top, left, bottom, right) in px, the last two exclusive."""
    left, top, width, height = cv2.boundingRect(fov.view(np.uint8))
    if not width:
        raise RejectedImage(
            Fault.NO_FIELD_OF_VIEW, "no field of view found: the given field is empty"
        )
    return top, left, top + height, left + width


def fov_diameter(fov: Mask, box: Box | None = None) -> int:
    """The field's diameter in px, also where it is cut off: its larger extent, or its circle's.

    Of a round field that is cut off both above or below and on a side, the circle that its rim
    lies on is larger than its extent. `box` is the field's, where it is at hand.
    """
    top, left, bottom, right = box or fov_box(fov)
    extent = max(bottom - top, right - left)
    step: int = -(-max(fov.shape) // SEARCH_PX)
    circle = fit_circle(np.ascontiguousarray(fov[step // 2 :: step, step // 2 :: step]))
    if circle is not None and 2 * step * circle.radius > extent * (1 + CUT_OFF):
        return round(2 * step * circle.radius)
    return extent
