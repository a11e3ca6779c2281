"""The frame around a field of view, where it is not one dark tone."""

from __future__ import annotations

import cv2
import numpy as np

from segpipe.data.arrays import Image8, Mask
from segpipe.data.circle import Circle, fit_circle
from segpipe.data.regions import largest_region, opened

DARK = 42  # of 255: a frame around a photograph is darker, a retina is not
SMALLEST_FIELD = 0.05  # share of the frame; what is smaller is no photograph of a fundus
CORNER = 0.03  # of the shorter side: the corners that show a frame
FLAT = 8  # grey levels between the darkest and the brightest tenth of a light frame's corner
ALIKE = 24  # grey levels: what differs less from a light frame's colour may belong to it
SMOOTH = 5.0  # grey levels: standard deviation of a light frame; of a retina it is larger
INNER_CORNER = 0.08  # of the shorter side of a region's box: there its outermost tone is seen
NOISE = 6.0  # grey levels: what differs less from an inner frame's tone is it
RIM_SHARE = 0.4  # of how a field differs from that tone: its rim lies there
SECTORS = 90  # of a circle, 4 degrees each
RINGS_PX = -8, -3, 3, 8  # from a circle outward, where a rim's step is seen
STEP = 6.0  # grey levels: of a rim at least
STEEPER = 2.0  # times the slopes beside it: so steep is a rim, and no retina's own shading
FILLED = 0.95  # of its box: a frame's rectangle
LEAST_SEEN = 0.1  # of the sectors: fewer do not tell
ROUND = 0.6  # of the sectors that are seen: in so many a rim has its step


def corners(shape: tuple[int, ...], share: float = CORNER) -> list[tuple[slice, slice]]:
    """Of a picture of this shape, squares of this share of its shorter side."""
    side = max(2, round(share * min(shape)))
    ends = slice(0, side), slice(-side, None)
    return [(rows, columns) for rows in ends for columns in ends]


def light_frame(image: Image8) -> Mask | None:
    """image [h, w, 3] uint8 -> [h, w] bool, True in its grey or white frame; None without one.

    That is what is as flat and as grey as two of the image's corners, and joined to one of them.
    """
    seeds, colours = [], []
    for rows, columns in corners(image.shape[:2]):
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


def inner_field(image: Image8, region: Mask, least: int) -> tuple[Image8, Mask] | None:
    """The round field in a region [h, w] bool that is a second frame's; None where there is none.

    -> what is not that frame, [h, w] uint8, 0 or 1, and its largest region, the field.

    Around a photograph with a grey frame there may be black besides: padding, a letterbox, a slide
    mount. Then the region that is lit is the frame's rectangle. Its outermost tone is taken for
    the frame's, and what differs from that, in colour or by being brighter, for the field, where
    the rim lies on a circle along which the picture's colour steps, at more than `least` sectors.
    Of another shape it is found where the frame is light and flat.
    """
    longest, found = least, None
    for candidate in _within(image, region):
        inside = opened(candidate)
        field = largest_region(inside)
        if field.mean() < SMALLEST_FIELD:
            continue
        circle = fit_circle(field)
        if circle is not None and (length := stepping(image, circle, region, field)) > longest:
            longest, found = length, (inside, field)
    return found if found or least else _in_padded_frame(image, region)


def _in_padded_frame(image: Image8, region: Mask) -> tuple[Image8, Mask] | None:
    """The field of any shape in a light frame that fills a box, beside which there is padding."""
    left, top, width, height = cv2.boundingRect(region.view(np.uint8))
    if min(width, height) <= 4:
        return None
    box = slice(top + 2, top + height - 2), slice(left + 2, left + width - 2)  # less what is mixed
    if region[box].mean() < FILLED or width * height == region.size:
        return None
    frame = light_frame(image[box])
    if frame is None:
        return None
    inside = np.zeros(region.shape, np.uint8)
    inside[box] = opened(~frame)
    return inside, largest_region(inside)


def _within(image: Image8, region: Mask) -> list[Mask]:
    """Parts of the region that may be the field in it."""
    levels = image.max(axis=2)
    edge = _corners_of(region)
    counts = np.bincount(levels[edge], minlength=256)
    mode = int(np.convolve(counts, np.ones(2 * 8 + 1), "same").argmax())
    outermost = image[edge & (np.abs(levels.astype(np.int16) - mode) <= 8)]
    if not len(outermost):
        return []
    tone = np.median(outermost, axis=0)
    away = cv2.absdiff(image, np.array([*tone, 0], np.float64)).max(axis=2)
    noise = away[edge & (away <= ALIKE)]
    least = max(NOISE, 4 * float(np.median(noise))) if len(noise) else NOISE
    brighter = levels > tone.max() + least
    inside = region & (away >= RIM_SHARE * cv2.dilate(away, np.ones((5, 5), np.uint8)))
    return [inside & (away > 2 * least), inside & brighter, inside & (away > least)]


def _corners_of(region: Mask) -> Mask:
    """The region in the corners of its box."""
    left, top, width, height = cv2.boundingRect(region.view(np.uint8))
    inside = np.zeros(region.shape, bool)
    box = inside[top : top + height, left : left + width]
    for rows, columns in corners(box.shape, INNER_CORNER):
        box[rows, columns] = True
    return inside & region


def stepping(image: Image8, circle: Circle, region: Mask, field: Mask) -> int:
    """At how many of SECTORS of a field's circle the colour of image [h, w, 3] steps.

    0 where it does so at less than ROUND of those where the field's rim lies on the circle and in
    the region [h, w], or where these are too few to tell.
    """
    angle = np.linspace(0, 2 * np.pi, SECTORS, endpoint=False)
    radius = circle.radius + np.asarray(RINGS_PX)[:, None]
    x = (circle.x + radius * np.cos(angle)).astype(np.float32)
    y = (circle.y + radius * np.sin(angle)).astype(np.float32)
    there = cv2.remap(region.view(np.uint8), x, y, cv2.INTER_NEAREST) > 0
    seen = there[1] & there[2]
    seen &= cv2.remap(field.view(np.uint8), x[1:2], y[1:2], cv2.INTER_NEAREST)[0] > 0
    if seen.mean() < LEAST_SEEN:
        return 0
    rings = cv2.remap(cv2.blur(image, (3, 3)), x, y, cv2.INTER_LINEAR).astype(np.float32)
    around = np.arange(SECTORS)[:, None] + np.arange(-2, 3)
    rings = rings[:, around % SECTORS].mean(axis=2)
    inner, step, outer = (np.abs(np.diff(rings, axis=0))).max(axis=2)
    outer[~there[3]] = 0  # the frame's own rim
    steep = seen & (step > STEP) & (step > STEEPER * np.maximum(inner, outer))
    return int(steep.sum()) if steep.sum() >= ROUND * seen.sum() else 0
