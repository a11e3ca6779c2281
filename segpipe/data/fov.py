"""The field of view: the aperture through which the retina is seen, found in a photograph."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segpipe.data.circle import TOLERANCE, Circle, fit_circle
from segpipe.data.frames import DARK, SMALLEST_FIELD, corners, inner_field, light_frame, stepping
from segpipe.data.regions import closed, largest_region, opened
from segpipe.errors import Fault, RejectedImage

SEARCH_PX = 300  # longest side on which the field is searched; its rim is then good to 0.5 %
LIGHT = np.sqrt(np.arange(256, dtype=np.float32))  # of each level of the brightest channel
FRAME_SHARE = 0.01  # of the pixels: so many at least are the frame's, where there is one
BLACK = math.sqrt(DARK)  # 6.5
RIM_SHARE = 0.25  # of the light inside: a soft rim ends there; of 0 to 0.5 good on DRIVE's training
MORE_LIT = 0.05  # share of the picture, beside the largest region: a second frame's
TAB = 0.04  # of the radius: so far beyond its circle an aperture's tab reaches; DRIVE's do
NUM_SECTORS = 72  # of the disc, 5 degrees each: so finely shadows are told from cuts
DEPTHS = 0.05, 0.15  # of the radius from the region's rim: where its light is compared
BAND = 0.015  # of the radius: so near to them
DEEP = 0.73  # at most, of a shadow with a steep edge
GOES_ON = 1.3  # times as much the light is lost beyond a shadow's edge as before it; of cuts 1.9
SHADOW = 0.85  # at most, their lights' ratio over that by the circle; a soft cut's may be 0.9
CUT_OFF = 0.02  # so much wider than the field its circle is where the field is cut off on two axes

Image8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]


def find_fov(image: Image8 | Image.Image, reduction: int = 1) -> Mask:
    """image [H, W, 3] uint8 -> fov [H, W] bool: the aperture through which the retina is seen.

    The frame around a fundus photograph is nearly black, the retina is brightest in red; Otsu's
    threshold on the square root of the brightest channel, halved toward the frame's own level,
    parts them. A flat grey or white frame is first taken for black. The largest bright region is
    then mended where its rim lies on a circle. A photograph without a frame is field all over.
    Raises RejectedImage where no field is found.

    The image may also be Pillow's, of mode RGB. Where it is one reduced by `reduction`, it is
    searched on as many cells as the whole would be.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = picture.size
    factor = max(1, -(-max(height, width) * reduction // SEARCH_PX))
    if reduction == 1:
        small = np.asarray(picture.reduce(factor))
    else:
        cells = -(-width * reduction // factor), -(-height * reduction // factor)
        small = np.asarray(picture.resize(cells, Image.Resampling.BOX))
    levels = np.maximum(np.maximum(small[..., 0], small[..., 1]), small[..., 2])
    if LIGHT[levels.max()] < BLACK:
        raise RejectedImage(Fault.NO_FIELD_OF_VIEW, "no field of view found: the image is black")
    outer = light_frame(small)
    if outer is not None:
        _paint(levels, outer)
    bright, region, frame = _lit(levels)
    circle = fit_circle(region)
    rim = 0 if circle is None else stepping(small, circle, np.ones_like(region), region)
    if outer is not None or rim == 0 or bright.mean() - region.mean() > MORE_LIT:
        inner = inner_field(small, bright if outer is None else bright | outer, rim if outer is None else int(.9*rim))
        if inner is not None:
            _paint(levels, ~inner)
            region, frame = inner, float(LIGHT[levels[~inner]].max())
            circle = fit_circle(region)
    if region.mean() < SMALLEST_FIELD:
        raise RejectedImage(
            Fault.NO_FIELD_OF_VIEW,
            f"no field of view found: {region.mean():.1%} of the image is lit",
        )
    field = mended(region, circle, LIGHT[levels] - np.float32(frame))
    if reduction == 1:
        return _enlarge(field, field.shape[0] * factor, field.shape[1] * factor)[:height, :width]
    return _enlarge(field, height, width)


def _paint(levels: Image8, frame: Mask) -> None:
    """The frame as dark as the darkest of the rest, or darker: then only that is left."""
    darkest = _quantile(_counts(levels[~frame], 256), FRAME_SHARE)
    levels[frame] = round(min(darkest, BLACK) ** 2)


def _lit(levels: Image8) -> tuple[Mask, Mask, float]:
    """levels [h, w] uint8 -> what is brighter than the frame, its largest region, [h, w] bool, and
    the frame's light.
    """
    counts = _counts(levels, 256)
    frame = _quantile(counts, FRAME_SHARE)
    if frame > BLACK:
        frame = _dark_corners(levels)
    if frame > BLACK:
        everything = np.ones(levels.shape, bool)
        return everything, everything, frame
    is_bright = frame + (_otsu(counts) - frame) / 2 < LIGHT  # [256], as all that depends on a level
    bright = is_bright[levels]
    inside = bright & _beside_no_rim(levels, frame**2)
    return bright, largest_region(opened(inside)), frame


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


def mended(region: Mask, circle: Circle | None, light: npt.NDArray[np.float32]) -> Image8:
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
        wide = cut & np.roll(cut, 1) & np.roll(cut, -1)  # wider than a vessel
        shadowed &= ~(wide | np.roll(wide, 1) | np.roll(wide, -1))
    disc = 255 * np.clip(circle.radius * (1 - TOLERANCE - away) + 0.5, 0, 1)
    return np.where(kept, 255, disc * shadowed[sector]).astype(np.uint8)


def _by_sector(
    light: npt.NDArray[np.float32], sector: npt.NDArray[np.int_], where: Mask
) -> npt.NDArray[np.float64]:
    """The mean of light [h, w] in each sector and its two neighbours, 0 where there is none."""
    sums = np.bincount(sector[where], light[where], NUM_SECTORS)
    nums = np.bincount(sector[where], minlength=NUM_SECTORS)
    around = np.arange(NUM_SECTORS)[:, None] + (-1, 0, 1)
    sums, nums = (x[around % NUM_SECTORS].sum(axis=1) for x in (sums, nums))
    means: npt.NDArray[np.float64] = sums / np.maximum(nums, 1)
    return means


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
