"""Drawn fundus photographs with exact vessel labels, for a demo that needs no download.

A picture comes about as the real one does: an eye with its landmarks, a tree of vessels that grows
from the optic disc, the vessels' absorption, the light that the retina gives back, the camera.
Lengths are in field radii with the origin in the field's centre, x to the right, y down, written
as complex numbers; the eye is a right one until it is viewed, when it may be mirrored and tilted.
"""

from __future__ import annotations

import cmath
import io
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from segpipe.data.arrays import Image8, Mask, Plane

Rng = np.random.Generator
Points = npt.NDArray[np.complex64]  # [H, W]

FIELD_SHARE = 0.956  # field diameter / shorter side: DRIVE's 540 of 565 px
STEP = 0.012  # field radii per step of growth: 3 px at DRIVE's scale, so that bends stay round
CELL = 0.02  # field radii: vessels other than the wide ones keep about two cells apart
LEAD = 5  # steps a branch may take beside its parent before it heeds what others have claimed
TIP_STEPS = 12  # steps in which a vessel that ends within the field runs out
THINNEST = 0.0048  # field radii: 1.3 px of DRIVE, about what an observer still draws
WIDEST = 0.038  # field radii: a vein at the disc, ten pixels of DRIVE
NARROWEST_PX = 1.4  # px: drawn no thinner, or a label would break up between pixels
AVASCULAR = 0.13  # field radii: the fovea has no vessels
TEMPORAL_WIDTH = 1.9  # field radii: the arcades' ellipse opens away from the disc
RIM = 1.04  # field radii: growth ends beyond the field, so that no vessel stops at its edge
CANVAS_PX = 2400  # px: smaller images are drawn enlarged up to here and reduced, so edges are soft
WORKING_PX = 320  # px, longest side on which light is computed: nothing in it is finer than 0.01
BLUR = 0.0033  # field radii: the optics' point spread, 0.9 px at DRIVE's scale
ABSORPTION = (0.11, 0.46, 0.22)  # of R, G, B by the widest vein, as -log; blood is red
BLACK = (8.0, 6.8, 6.8)  # grey levels outside DRIVE's field
DISC_COLOUR = (1.5, 1.25, 0.7)  # R, G, B of the disc in units of the retina's mean red


class Eye(NamedTuple):
    """Landmarks of a right eye, and how the camera sees it."""

    disc: complex
    disc_radius: float
    fovea: complex
    turn: complex  # unit length: the tilt of the head
    left: bool  # a left eye is a mirrored right one


class Bud(NamedTuple):
    """Where a vessel starts, which way it heads (radians) and how far it may go."""

    start: complex
    heading: float
    width: float
    reach: float
    vein: bool
    arch: float = 0.0  # height over the fovea of the arcade it follows; 0 where it goes freely


class Vessel(NamedTuple):
    """A centre line and the vessel's width at each of its points."""

    points: list[complex]
    widths: list[float]
    vein: bool


class Frame(NamedTuple):
    """The picture's size and where the field lies in it."""

    height: int  # px
    width: int  # px
    radius: float  # px, of the field
    centre: complex  # px

    def scan(self, height: int, width: int) -> Points:
        """Field coordinates of the pixel centres of this frame sampled at [height, width]."""
        x = (np.arange(width) + 0.5) * (self.width / width) - self.centre.real
        y = (np.arange(height) + 0.5) * (self.height / height) - self.centre.imag
        across, down = x / self.radius, 1j * y / self.radius
        return across.astype(np.complex64)[None, :] + down.astype(np.complex64)[:, None]


def draw_fundus(
    seed: int, height: int = 584, width: int = 565, diameter: float | None = None
) -> tuple[Image8, Mask, Mask]:
    """-> image [H, W, 3] uint8 RGB, vessel [H, W] bool, fov [H, W] bool; a pure function.

    `diameter` is the field's in px, by default what DRIVE's is to its frame; a field larger than
    the frame is cut off. `vessel` is the drawn geometry itself, wherever it covers half a pixel.
    """
    rng = np.random.default_rng(seed)
    diameter = FIELD_SHARE * min(height, width) if diameter is None else diameter
    shift = rng.uniform(-0.01, 0.01, 2) * diameter  # the field is never quite in the middle
    centre = complex(width / 2 + shift[0], height / 2 + shift[1])
    frame = Frame(height, width, diameter / 2, centre)
    eye = _draw_eye(rng)
    tree = _grow_tree(rng, eye)  # landmarks -> vessels as lines with widths
    depth, covered = _paint_vessels(tree, eye, frame)  # -> blood per pixel, and where there is any
    light = _shade(rng, eye, frame)  # -> what the retina without vessels gives back
    fov, aperture = _field(frame)
    image = _photograph(rng, light, depth, aperture)
    return image, covered & fov, fov


def _draw_eye(rng: Rng) -> Eye:
    disc = complex(rng.uniform(0.68, 0.86), rng.uniform(-0.14, 0.04))
    fovea = complex(rng.uniform(-0.1, 0.06), rng.uniform(-0.02, 0.1))
    turn = cmath.rect(1.0, rng.uniform(-0.12, 0.12))
    return Eye(disc, rng.uniform(0.135, 0.165), fovea, turn, bool(rng.random() < 0.5))


# The tree


def _grow_tree(rng: Rng, eye: Eye) -> list[Vessel]:
    """The widest bud grows first, so that thin vessels fill the room that wide ones leave."""
    buds, tree = _trunks(rng, eye), list[Vessel]()
    claimed: set[tuple[int, int]] = set()
    while buds:
        buds.sort(key=lambda bud: bud.width)
        bud = buds.pop()
        points = _find_path(rng, bud, eye, claimed)
        if len(points) < 2 * LEAD:
            continue
        vessel, sprouts = _branch(rng, bud, points)
        tree.append(vessel)
        buds += sprouts
        claimed.update(cell for point in points for cell in _cells_around(point))
    return tree


def _trunks(rng: Rng, eye: Eye) -> list[Bud]:
    """Artery and vein for each quadrant, and the small vessels between the disc and the fovea."""
    buds = []
    for down in (-1, 1):
        arch = rng.uniform(0.52, 0.68)
        for vein in (False, True):
            width = WIDEST * rng.uniform(0.78, 1.0) * (1.0 if vein else 0.78)
            own_arch = down * (arch + rng.normal(0, 0.05))
            start = eye.disc + eye.disc_radius * complex(*rng.uniform(-0.15, 0.15, 2))
            buds.append(Bud(start, down * 1.7, width, 2.6, vein, own_arch))
            nasal = down * rng.uniform(0.5, 1.3)
            buds.append(Bud(start, nasal, width * rng.uniform(0.45, 0.65), 1.0, vein))
    for angle in rng.uniform(-0.85, 0.85, rng.integers(3, 6)):
        small = THINNEST * rng.uniform(1.3, 2.6)
        buds.append(Bud(eye.disc, math.pi + angle, small, rng.uniform(0.4, 0.8), False))
    return buds


def _find_path(rng: Rng, bud: Bud, eye: Eye, claimed: set[tuple[int, int]]) -> list[complex]:
    """A wandering line that ends at the rim, at the fovea, or where others have claimed the room.

    The arcades ignore others' claims: there arteries and veins do cross.
    """
    wobble = 0.06 + 0.07 * (1 - bud.width / WIDEST)  # thin vessels wind more
    heedless = bool(bud.arch) or rng.random() < 0.12
    if not heedless and _cell(bud.start + cmath.rect(3.5 * CELL, bud.heading)) in claimed:
        return []
    points, heading, turn = [bud.start], bud.heading, 0.0
    for step, noise in enumerate(rng.normal(0, wobble, int(bud.reach / STEP))):
        turn = 0.6 * turn + float(noise)
        heading += turn + _pull(points[-1], heading, bud, eye)
        point = points[-1] + cmath.rect(STEP, heading)
        ahead = _cell(point + cmath.rect(1.5 * CELL, heading))
        if step > LEAD and not heedless and ahead in claimed:
            break
        if abs(point) > RIM or abs(point - eye.fovea) < AVASCULAR:
            break
        points.append(point)
    return points


def _pull(point: complex, heading: float, bud: Bud, eye: Eye) -> float:
    """Radians to turn in this step: a free vessel keeps its course, an arcade rounds the fovea."""
    if not bud.arch:
        return 0.08 * (bud.heading - heading)
    away = point - eye.fovea
    half_width = (eye.disc - eye.fovea).real if away.real > 0 else TEMPORAL_WIDTH
    x, y = away.real / half_width, away.imag / bud.arch
    gradient = complex(x / half_width, y / bud.arch)  # of the ellipse's level below
    outward = gradient / (abs(gradient) or 1.0)
    along = outward * (-1j if bud.arch < 0 else 1j)
    wanted = along - 2.0 * (math.hypot(x, y) - 1.0) * outward
    return 0.1 * cmath.phase(wanted / cmath.rect(1.0, heading))


def _branch(rng: Rng, bud: Bud, points: list[complex]) -> tuple[Vessel, list[Bud]]:
    """Widths along a path, and the buds it gives off: at its sides, and two where it forks."""
    width, side, until_next = bud.width, rng.choice((-1, 1)), rng.uniform(0.06, 0.16)
    widths, buds = list[float](), list[Bud]()
    for here, there in zip(points, points[1:] + points[-1:], strict=True):
        widths.append(width)
        until_next -= STEP
        if until_next < 0 and here != there and width > THINNEST:
            share = rng.uniform(0.3, 0.72)
            heading = cmath.phase(there - here) + side * rng.uniform(0.6, 1.25)
            buds.append(_side_bud(rng, here, heading, width * share, bud.vein))
            width *= (1 - share**3) ** (1 / 3)  # Murray's law: the cubes of the widths add up
            side, until_next = -side, rng.uniform(0.05, 0.15)
    if width > THINNEST and len(points) * STEP > bud.reach:
        end = cmath.phase(points[-1] - points[-2])
        for angle in (-0.45, 0.45):
            buds.append(_side_bud(rng, points[-1], end + angle, width * 0.79, bud.vein))
    elif abs(points[-1]) < 1:  # none ends bluntly within the field
        tips = (bud.width * step / TIP_STEPS for step in range(len(widths), 0, -1))
        widths = [min(w, max(tip, 0.7 * THINNEST)) for w, tip in zip(widths, tips, strict=True)]
    return Vessel(points, widths, bud.vein), buds


def _side_bud(rng: Rng, start: complex, heading: float, width: float, vein: bool) -> Bud:
    reach = rng.uniform(0.6, 1.4) * (0.1 + 30 * width)
    return Bud(start, heading, max(width, THINNEST * 0.9), reach, vein)


def _cell(point: complex) -> tuple[int, int]:
    return math.floor(point.real / CELL), math.floor(point.imag / CELL)


def _cells_around(point: complex) -> list[tuple[int, int]]:
    x, y = _cell(point)
    return [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


# The vessels


def _paint_vessels(tree: list[Vessel], eye: Eye, frame: Frame) -> tuple[Plane, Mask]:
    """-> depth [H, W] float32, 1 in the widest vein; covered [H, W] bool, of the same drawing."""
    scale = min(4, -(-CANVAS_PX // max(frame.height, frame.width)))
    canvas = Image.new("L", (frame.width * scale, frame.height * scale))
    pen = ImageDraw.Draw(canvas)
    for vessel in sorted(tree, key=lambda vessel: vessel.widths[0]):
        _paint_vessel(pen, vessel, eye, frame, scale)
    any_blood = canvas.point([0] + [255] * 255)
    covered = np.asarray(any_blood.reduce(scale)) > 127
    blurred = canvas.reduce(scale).filter(ImageFilter.GaussianBlur(BLUR * frame.radius))
    return np.asarray(blurred, np.float32) / np.float32(255), covered


def _paint_vessel(
    pen: ImageDraw.ImageDraw, vessel: Vessel, eye: Eye, frame: Frame, scale: int
) -> None:
    spots = [scale * (frame.centre + frame.radius * _view(eye, z)) for z in vessel.points]
    px = [max(width * frame.radius, NARROWEST_PX) * scale for width in vessel.widths]
    for stroke, shine in ((1.0, 1.0), (0.3, 0.72)):  # then the light reflex along its middle
        if stroke < 1 and vessel.widths[0] < 0.5 * WIDEST:
            continue
        for i in range(len(spots) - 1):
            depth = _depth(vessel.widths[i], vessel.vein) * shine
            _paint_stroke(pen, spots[i], spots[i + 1], px[i] * stroke, round(255 * depth))


def _paint_stroke(
    pen: ImageDraw.ImageDraw, start: complex, end: complex, width: float, value: int
) -> None:
    pen.line((start.real, start.imag, end.real, end.imag), value, max(1, round(width)))
    r = max(0.0, width / 2 - 0.5)  # Pillow's ellipse takes in the pixels at both of its ends
    pen.ellipse((end.real - r, end.imag - r, end.real + r, end.imag + r), value)


def _depth(width: float, vein: bool) -> float:
    """The blood that light passes: less in thin vessels, and paler in arteries."""
    return min(1.0, math.sqrt(width / WIDEST)) * (1.0 if vein else 0.8)


def _view(eye: Eye, point: complex) -> complex:
    seen = point * eye.turn
    return complex(-seen.real, seen.imag) if eye.left else seen


def _unview(eye: Eye, seen: Points) -> Points:
    return (-seen.conj() if eye.left else seen) * np.complex64(eye.turn.conjugate())


# The light


def _shade(rng: Rng, eye: Eye, frame: Frame) -> Plane:
    """-> light [h, w, 3] float32 in grey levels, at working size: the retina without vessels."""
    shrink = min(1.0, WORKING_PX / max(frame.height, frame.width))
    height, width = round(frame.height * shrink), round(frame.width * shrink)
    seen = frame.scan(height, width)
    z = _unview(eye, seen)
    unit = frame.radius * shrink  # working px in a field radius
    retina = _pigment(rng, z.shape, unit) * _illumination(rng, seen, unit)[..., None]
    retina *= 1 - _macula(rng, z, eye)
    disc = _disc(rng, z, eye, unit)[..., None]
    colour = retina[..., 0].mean() * np.array(DISC_COLOUR, np.float32)
    light: Plane = retina + disc * (colour - retina)
    return light


def _pigment(rng: Rng, shape: tuple[int, ...], unit: float) -> Plane:
    """The retina's colour, mottled by the choroid behind it, most of all in red and green."""
    red = rng.uniform(145, 228)
    green = red * rng.uniform(0.43, 0.64)
    colour = np.array([red, green, green * rng.uniform(0.5, 0.7)], np.float32)
    mottle = 0.025 * clouds(rng, shape, 0.013 * unit) + 0.02 * clouds(rng, shape, 0.06 * unit)
    tint = 0.045 * clouds(rng, shape, 0.4 * unit)
    change = np.stack([mottle * 0.7 + tint, mottle - tint, mottle * 0.6 - tint], axis=-1)
    pigment: Plane = colour * (1 + change)
    return pigment


def _illumination(rng: Rng, seen: Points, unit: float) -> Plane:
    """Brightest near a point off the centre, since the flash never quite meets the pupil."""
    peak = complex(*rng.uniform(-0.35, 0.35, 2))
    falloff = rng.uniform(0.12, 0.28) * np.abs(seen - np.complex64(peak)) ** 2
    light: Plane = 1.06 - falloff + 0.05 * clouds(rng, seen.shape, 0.35 * unit)
    return light


def _macula(rng: Rng, z: Points, eye: Eye) -> Plane:
    """The share of light [H, W, 3] lost in the macula and most of all in the fovea."""
    away = np.abs(z - np.complex64(eye.fovea))
    fovea, macula = np.exp(-((away / 0.11) ** 2)), np.exp(-((away / 0.3) ** 2))
    dark = rng.uniform(0.6, 1.0) * fovea + 0.45 * macula
    lost: Plane = dark[..., None] * np.array([0.13, 0.22, 0.2], np.float32)
    return lost


def _disc(rng: Rng, z: Points, eye: Eye, unit: float) -> Plane:
    """The disc's share [H, W] in the light: an oval, a brighter cup in it, a glow around it."""
    away = z - np.complex64(eye.disc)
    oval = np.hypot(away.real, away.imag * rng.uniform(0.84, 0.96)) / eye.disc_radius
    oval += 0.05 * clouds(rng, z.shape, 0.08 * unit)
    cup = np.abs(away + np.complex64(0.2 * eye.disc_radius)) / eye.disc_radius
    edge = 0.5 * (1 - np.tanh((oval - 1) / 0.11))
    share: Plane = (
        0.62 * edge + 0.3 * np.exp(-((cup / 0.5) ** 4)) + 0.08 * np.exp(-((oval / 2.2) ** 2))
    )
    return share


def clouds(rng: Rng, shape: tuple[int, ...], size: float) -> Plane:
    """Smooth noise [H, W] float32 of mean 0, deviation 1; `size` is its blobs' sigma in px."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), size, mode="wrap")
    noise -= noise.mean()
    clouds: Plane = noise / noise.std()
    return clouds


def _enlarge(plane: Plane, height: int, width: int) -> Plane:
    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


# The camera


def _field(frame: Frame) -> tuple[Mask, Plane]:
    """-> fov [H, W] bool, aperture [H, W] float32: the same disc with an edge 2 px wide."""
    inside = frame.radius * (1 - np.abs(frame.scan(frame.height, frame.width)))
    return inside >= 0, np.clip(inside / 2 + 0.5, 0, 1)


def _photograph(rng: Rng, light: Plane, depth: Plane, aperture: Plane) -> Image8:
    """-> image [H, W, 3] uint8: absorption, aperture, sensor noise, and JPEG's texture."""
    height, width = depth.shape
    grain = rng.uniform(3.0, 4.2)  # grey levels; JPEG then halves it to about DRIVE's 1.7
    image = np.empty((height, width, 3), np.uint8)
    for c in range(3):
        seen = _enlarge(light[..., c], height, width) * np.exp(-ABSORPTION[c] * depth)
        seen += grain * rng.standard_normal(depth.shape, np.float32)
        image[..., c] = np.clip(BLACK[c] + aperture * (seen - BLACK[c]) + 0.5, 0, 255)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=93)
    return np.asarray(Image.open(file))
