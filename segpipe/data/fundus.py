"""The field of view: find it, fit it to the working canvas, and the exact inverse.

A network sees every camera at one scale: the field is cropped out with a margin and scaled so that
its diameter equals the working diameter, and it lies on a square canvas of one fixed size, so that
images of any size share a batch and never depend on each other.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segpipe import kernels
from segpipe.data.classes import OUTSIDE, classes_of
from segpipe.errors import Fault, RejectedImage

SEARCH_PX = 300  # longest side on which the field is searched; its rim is then good to 0.5 %
OPENING_PX = (
    4  # at that size: strips of flare and the dark frame's noise are thinner than twice this
)
LIGHT = np.sqrt(np.arange(256, dtype=np.float32))  # of each level of the brightest channel
FRAME_SHARE = 0.01  # of the pixels: so many at least are the frame's, where there is one
DARK = 42  # of 255: a frame around a photograph is darker, a retina is not
BLACK = 6.5  # its square root
SMALLEST_FIELD = 0.05  # share of the frame; what is smaller is no photograph of a fundus
SAME_SCALE = 0.02  # within 2 % of the working diameter an image is not resampled
RIM_SHARE = 0.25  # of the light inside: a soft rim ends there; of 0 to 0.5 good on DRIVE's training
CORNER = 0.03  # of the shorter side: the corners that show a frame
FLAT = 8  # grey levels between the darkest and the brightest tenth of a light frame's corner
ALIKE = 24  # grey levels: what differs less from a light frame's colour may belong to it
SMOOTH = 5.0  # grey levels: standard deviation of a light frame; of a retina it is larger
TOLERANCE = 0.01  # of the radius: so near to a circle its points lie; 1.5 px of the search
TAB = 0.04  # of the radius: so far beyond its circle an aperture's tab reaches; DRIVE's do
TRIPLES = 120  # with 40 % of the points on a circle, one in 16 triples has all three on it
FEW_POINTS = 150  # of the rim, among which a triple's supporters are counted
FEWEST_POINTS = 20  # of a rim that may be a circle
ON_CIRCLE = 0.25  # of the rim's points; of a square's with its inner circle it is 0.2
BEYOND_CIRCLE = 0.2  # of the rim's points; of an octagon's with its inner circle it is 0.6
WIDEST_GAP = 1.3 * math.pi  # between neighbours on a circle: a shorter arc does not tell its radius
NUM_SECTORS = 72  # of the disc, 5 degrees each: so finely shadows are told from cuts
DEPTHS = 0.05, 0.15  # of the radius from the region's rim: where its light is compared
BAND = 0.015  # of the radius: so near to them
SHADOW = 0.85  # at most, their lights' ratio over that by the circle; a soft cut's may be 0.9
MARGIN_PX = 6  # canvas px kept around the field, so that its rim is seen against what is outside it
REDUCING_GAP = 2.0  # Pillow first halves by boxes down to twice the size: half the time
CANVAS_STEP = 32  # px: five poolings by 2 divide the canvas

Image8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]


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
    lit = light_frame(small)
    if lit is not None:
        darkest = _quantile(_counts(levels[~lit], 256), FRAME_SHARE)
        levels[lit] = round(min(darkest, BLACK) ** 2)
    counts = _counts(levels, 256)
    frame = _quantile(counts, FRAME_SHARE)
    if frame > BLACK:
        frame = _dark_corners(levels)
    if frame > BLACK:
        return np.ones((height, width), bool)
    bright = frame + (_otsu(counts) - frame) / 2 < LIGHT  # [256], as all that depends on a level
    inside = bright[levels] & _beside_no_rim(levels, frame**2)
    region = _largest_region(_without_thin(inside, cv2.MORPH_OPEN))
    if region.mean() < SMALLEST_FIELD:
        raise RejectedImage(
            Fault.NO_FIELD_OF_VIEW,
            f"no field of view found: {region.mean():.1%} of the image is lit",
        )
    field = mended(region, LIGHT[levels] - np.float32(frame))
    if reduction == 1:
        return _enlarge(field, field.shape[0] * factor, field.shape[1] * factor)[:height, :width]
    return _enlarge(field, height, width)


def _dark_corners(levels: Image8) -> float:
    """The second darkest corner's light: a field cut off on all sides may show little else."""
    corners = [np.median(levels[corner]) for corner in _corners(levels.shape)]
    return float(np.sqrt(sorted(corners)[1]))


def _beside_no_rim(levels: Image8, frame: float) -> Mask:
    """levels [h, w] uint8 -> [h, w] bool, False where most light over the frame is lost in 2 px.

    So a soft rim is cut short, and stray light beside the field is parted from it.
    """
    nearby = cv2.dilate(levels, np.ones((5, 5), np.uint8))
    inside: Mask = levels >= frame + RIM_SHARE * (nearby - np.float32(frame))
    return inside


def _corners(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    side = max(2, round(CORNER * min(shape)))
    ends = slice(0, side), slice(-side, None)
    return [(rows, columns) for rows in ends for columns in ends]


def light_frame(image: Image8) -> Mask | None:
    """image [h, w, 3] uint8 -> [h, w] bool, True in its grey or white frame; None without one.

    That is what is as flat and as grey as two of the image's corners, and joined to one of them.
    """
    seeds, colours = [], []
    for rows, columns in _corners(image.shape[:2]):
        corner = np.sort(image[rows, columns].reshape(-1, 3).astype(int), axis=0)
        low, colour, high = corner[[len(corner) // 10, len(corner) // 2, -1 - len(corner) // 10]]
        if colour.max() > DARK and (high - low).max() <= FLAT and np.ptp(colour) <= FLAT:
            seeds.append((rows.start, columns.start))
            colours.append(colour)
    if len(seeds) < 2 or np.ptp(colours, axis=0).max() > FLAT:
        return None
    colour = np.median(colours, axis=0)
    alike = cv2.inRange(image, colour - ALIKE, colour + ALIKE) // 255
    framed = cv2.morphologyEx(alike, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    for row, column in seeds:
        if framed[row // 2, column // 2] == 1:  # -side // 2 is inside that corner
            cv2.floodFill(
                framed, None, (column // 2 % image.shape[1], row // 2 % image.shape[0]), (2,)
            )
    frame: Mask = framed == 2
    if not 0 < frame.mean() < 1 - SMALLEST_FIELD or image[frame].std(axis=0).max() > SMOOTH:
        return None
    return frame


def mended(region: Mask, light: npt.NDArray[np.float32]) -> Image8:
    """The region [h, w] bool that is lit -> its aperture's share of each pixel, 0 to 255.

    light [h, w] float32 is the square root of the brightest channel over the frame's. Where the
    region's rim lies on a circle, what is far beyond the circle is taken away, and two kinds of
    what is missing in its disc are filled: dents as narrow as vessels, and shadows, toward which
    the light fades slower than toward the rim on the circle. What is cut off as sharply as that
    rim stays cut off, and so does all where no circle is found: a wrong guess costs more.
    """
    circle = fit_circle(region)
    if circle is None:
        return region.view(np.uint8) * np.uint8(255)
    rows, columns = np.indices(region.shape, np.float32)
    down, right = rows - np.float32(circle.y), columns - np.float32(circle.x)
    away = np.sqrt(down**2 + right**2) / np.float32(circle.radius)
    square = np.maximum(np.abs(down), np.abs(right)) / np.float32(circle.radius)
    kept: Mask = region & (away < 1 + TAB) & (square < 1 + TOLERANCE)
    kept |= _without_thin(region, cv2.MORPH_CLOSE).view(bool) & (away < 1 - TOLERANCE)
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
    shadowed = dented & (near > 0) & (fade < SHADOW * np.median(on_circle))
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


def _without_thin(region: Mask, operation: int) -> Image8:
    """region [h, w] -> uint8, 1 in it, less what is thinner than OPENING_PX on each side.

    What lies beyond the image counts as dark. Of the region where `operation` is MORPH_OPEN, of
    what is around it where it is MORPH_CLOSE.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    changed = cv2.morphologyEx(
        region.view(np.uint8),
        operation,
        cross,
        iterations=OPENING_PX,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return np.asarray(changed, np.uint8)


def _largest_region(bright: Image8) -> Mask:
    """bright [h, w] uint8, 0 or 1 -> bool, True in its largest region and in that one's holes."""
    num, found = cv2.connectedComponents(bright, connectivity=4, ltype=cv2.CV_16U)
    if num == 1:
        return np.zeros(bright.shape, bool)
    regions = np.asarray(found, np.uint16)
    largest = regions == 1 + np.argmax(_counts(regions, num)[1:])
    framed = np.pad(largest, 1).view(np.uint8)
    cv2.floodFill(framed, None, (0, 0), (2,))  # all that is reached from outside
    filled: Mask = framed[1:-1, 1:-1] != 2
    return filled


@dataclass(frozen=True)
class Circle:
    """Its centre and radius in px; a pixel's centre has whole numbers."""

    x: float
    y: float
    radius: float


def _rim(region: Mask) -> Points:
    """region [h, w] bool -> where its rows and columns begin and end, (x, y) [n, 2].

    Ends at the image's border are left out: there the image ends, not the aperture.
    """
    ends = []
    for lines in (region, np.ascontiguousarray(region.T)):
        at = np.flatnonzero(lines.any(axis=1))
        first = lines[at].argmax(axis=1)
        after = lines.shape[1] - lines[at, ::-1].argmax(axis=1)
        begins, stops = first > 0, after < lines.shape[1]
        along = np.concatenate([first[begins], after[stops]]) - 0.5
        across = np.concatenate([at[begins], at[stops]])
        ends.append((along, across) if lines is region else (across, along))
    return np.concatenate([np.stack(pair, axis=1) for pair in ends])


def fit_circle(region: Mask) -> Circle | None:
    """region [h, w] bool -> the circle that its rim lies on, or None.

    The best circle through three points of many triples (RANSAC, Fischler and Bolles 1981), fitted
    again to all points near it by least squares (Kasa 1976). None where too few lie near it, too
    many beyond it, or all near it on one side.
    """
    rim = _rim(region)
    if len(rim) < FEWEST_POINTS:
        return None
    few = rim[:: max(1, len(rim) // FEW_POINTS)]
    circles = _through(few[np.random.default_rng(0).integers(0, len(few), (TRIPLES, 3))])
    radii = circles[:, 2]
    circles = circles[(radii > 0.1 * min(region.shape)) & (radii < math.hypot(*region.shape))]
    if not len(circles):
        return None
    num_near = (np.abs(_beyond(few, circles)) < TOLERANCE).sum(axis=1)
    circle = circles[np.argmax(num_near)]
    for _ in range(2):
        near = rim[np.abs(_beyond(rim, circle)) < TOLERANCE]
        circle = _through_all(near)
        if not 0 < circle[2] < math.hypot(*region.shape):
            return None
    beyond = _beyond(rim, circle)
    on = np.abs(beyond) < TOLERANCE
    if on.mean() < ON_CIRCLE or (beyond > TOLERANCE).mean() > BEYOND_CIRCLE:
        return None
    x, y, radius = map(float, circle)
    angles = np.sort(np.arctan2(rim[on, 1] - y, rim[on, 0] - x))
    if np.diff(angles, append=angles[0] + 2 * np.pi).max() > WIDEST_GAP:
        return None
    return Circle(x, y, radius)


def _beyond(points: Points, circle: Points) -> Points:
    """How far points (x, y) [n, 2] lie outside circles (x, y, radius) [..., 3], in their radii."""
    x, y, radius = (circle[..., i, None] for i in range(3))
    beyond: Points = np.sqrt((points[:, 0] - x) ** 2 + (points[:, 1] - y) ** 2) / radius - 1
    return beyond


def _through_all(points: Points) -> Points:
    """The circle (x, y, radius) [3] nearest to points (x, y) [n, 2]: a linear system (Kasa)."""
    middle = points.mean(axis=0)
    away = points - middle
    terms = np.column_stack([2 * away, np.ones(len(away))])
    x, y, rest = np.linalg.lstsq(terms, (away**2).sum(axis=1))[0]
    return np.array([middle[0] + x, middle[1] + y, math.sqrt(max(rest + x**2 + y**2, 0))])


def _through(triples: Points) -> Points:
    """Three points (x, y) each, [n, 3, 2] -> x, y, radius of the circles through them, [m, 3]."""
    a, b = triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0]
    twice = 2 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    proper = np.abs(twice) > 1
    a, b, twice, origin = a[proper], b[proper], twice[proper], triples[proper, 0]
    aa, bb = (a**2).sum(axis=1), (b**2).sum(axis=1)
    x = (b[:, 1] * aa - a[:, 1] * bb) / twice
    y = (a[:, 0] * bb - b[:, 0] * aa) / twice
    return np.stack([origin[:, 0] + x, origin[:, 1] + y, np.hypot(x, y)], axis=1)


def _enlarge(share: Image8, height: int, width: int) -> Mask:
    full = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
    enlarged: Mask = np.asarray(full, np.uint8) > 127
    return enlarged


def fov_box(fov: Mask) -> tuple[int, int, int, int]:
    """fov [H, W] bool -> (top, left, bottom, right) in px, the last two exclusive."""
    left, top, width, height = cv2.boundingRect(fov.view(np.uint8))
    if not width:
        raise RejectedImage(
            Fault.NO_FIELD_OF_VIEW, "no field of view found: the given field is empty"
        )
    return top, left, top + height, left + width


def fov_diameter(fov: Mask) -> int:
    """The field's diameter in px, also where it is cut off: its larger extent, or its circle's.

    Of a round field that is cut off both above or below and on a side, the circle that its rim
    lies on is larger than its extent.
    """
    return _diameter(fov, fov_box(fov))


def _diameter(fov: Mask, box: tuple[int, int, int, int]) -> int:
    top, left, bottom, right = box
    extent = max(bottom - top, right - left)
    step: int = -(-max(fov.shape) // SEARCH_PX)
    circle = fit_circle(np.ascontiguousarray(fov[step // 2 :: step, step // 2 :: step]))
    if circle is not None and 2 * step * circle.radius > extent * (1 + SAME_SCALE):
        return round(2 * step * circle.radius)
    return extent


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

    def as_array(self) -> npt.NDArray[np.int32]:
        return np.asarray(astuple(self), np.int32)

    @classmethod
    def from_array(cls, values: npt.NDArray[np.int32]) -> Geometry:
        return cls(*(int(value) for value in values))

    @property
    def resampled(self) -> bool:
        return (self.scaled_height, self.scaled_width) != (self.box_height, self.box_width)


def plan_fit(
    fov: Mask, working_diameter: float, size: tuple[int, int] | None = None, reduction: int = 1
) -> Geometry:
    """How the field of fov [H, W] bool goes onto the canvas of this working diameter (px).

    `size` is the photograph's height and width where fov is that of one reduced by `reduction`.
    """
    height, width = size or fov.shape
    found = fov_box(fov)
    scale = scale_to(reduction * _diameter(fov, found), working_diameter)
    top, left, bottom, right = (reduction * edge for edge in found)
    margin = round(MARGIN_PX / scale)
    top, left = max(0, top - margin), max(0, left - margin)
    bottom, right = min(height, bottom + margin), min(width, right + margin)
    box = bottom - top, right - left
    scaled = max(1, round(box[0] * scale)), max(1, round(box[1] * scale))
    return Geometry(height, width, top, left, *box, *scaled)


def fit_image(
    image: Image8 | Image.Image, geometry: Geometry, side: int, reduction: int = 1
) -> Image8:
    """image [H, W, 3] uint8 -> canvas [side, side, 3] uint8 (antialiased where scaled).

    The image may also be Pillow's, of mode RGB, and one reduced by `reduction`; so too a fov.
    """
    return _fit(image, geometry, side, Image.Resampling.BILINEAR, reduction)


def fit_fov(fov: Mask, geometry: Geometry, side: int, reduction: int = 1) -> Image8:
    """fov [H, W] bool -> canvas [side, side] uint8, 255 inside, soft at the rim where scaled."""
    grey = fov.astype(np.uint8) * np.uint8(255)
    return _fit(grey, geometry, side, Image.Resampling.BILINEAR, reduction)


def fit_classes(classes: Image8, geometry: Geometry, side: int) -> Image8:
    """A class map [H, W] uint8 -> canvas [side, side] uint8; nearest neighbour, 0 outside."""
    return _fit(classes, geometry, side, Image.Resampling.NEAREST)


def _fit(
    pixels: Image8 | Image.Image,
    geometry: Geometry,
    side: int,
    resampling: Image.Resampling,
    reduction: int = 1,
) -> Image8:
    g, r = geometry, reduction
    left, top = g.left // r, g.top // r
    right, bottom = -(-(g.left + g.box_width) // r), -(-(g.top + g.box_height) // r)
    if isinstance(pixels, Image.Image):
        picture = pixels.crop((left, top, right, bottom))
    else:
        picture = Image.fromarray(pixels[top:bottom, left:right])
    if g.resampled:
        inset = g.left / r - left, g.top / r - top
        box = (*inset, inset[0] + g.box_width / r, inset[1] + g.box_height / r)
        size = g.scaled_width, g.scaled_height
        picture = picture.resize(size, resampling, box, REDUCING_GAP)
    fitted = np.asarray(picture)
    canvas = np.zeros((side, side, *fitted.shape[2:]), np.uint8)
    canvas[: g.scaled_height, : g.scaled_width] = fitted
    return canvas


def restore(canvas: npt.NDArray[np.float32], geometry: Geometry) -> npt.NDArray[np.float32]:
    """A score canvas [side, side] float32 -> [H, W] float32 at native size, 0 outside the box."""
    g = geometry
    native = np.zeros((g.height, g.width), np.float32)
    native[g.top : g.top + g.box_height, g.left : g.left + g.box_width] = _restore_box(canvas, g)
    return native


def _restore_box(canvas: npt.NDArray[np.float32], geometry: Geometry) -> npt.NDArray[np.float32]:
    g = geometry
    box = canvas[: g.scaled_height, : g.scaled_width]
    if not g.resampled:
        return box
    picture = Image.fromarray(np.ascontiguousarray(box))
    return np.asarray(picture.resize((g.box_width, g.box_height), Image.Resampling.BILINEAR))


def native_mask(
    score: npt.NDArray[np.float32], fov: Image8, geometry: Geometry, threshold: float
) -> Image8:
    """score [S, S] float32, fov [S, S] (255 inside) on the canvas -> mask [H, W], class of each px.

    The one rule: outside the field of view 0, inside it vessel where the score at native size
    reaches the threshold, background elsewhere. 12 megapixels take 3 ms compiled, else 100 ms.
    """
    enlarges = (
        geometry.scaled_height <= geometry.box_height
        and geometry.scaled_width <= geometry.box_width
    )
    if enlarges and not kernels.missing():
        return kernels.native_mask(score, fov, geometry.as_array(), threshold)
    return plain_native_mask(score, fov, geometry, threshold)


def plain_native_mask(
    score: npt.NDArray[np.float32], fov: Image8, geometry: Geometry, threshold: float
) -> Image8:
    """native_mask by Pillow, also where a small photograph was enlarged for the network."""
    g = geometry
    inside = _restore_box(fov.astype(np.float32), g) > 127
    vessel = _restore_box(score, g) >= np.float32(threshold)
    mask = np.full((g.height, g.width), OUTSIDE, np.uint8)
    mask[g.top : g.top + g.box_height, g.left : g.left + g.box_width] = classes_of(vessel, inside)
    return mask


def native_score(score: npt.NDArray[np.float32], mask: Image8, geometry: Geometry) -> Image8:
    """score [S, S] float32 in [0, 1] on the canvas -> [H, W] uint8, 255 for score 1.

    0 outside the field of view, as in mask [H, W], its native_mask.
    """
    levels: Image8 = np.rint(255 * restore(score, geometry).clip(0, 1)).astype(np.uint8)
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
