"""Vessels drawn as exact strips about a curve, with the answers of arithmetic.

A strip of width w has its walls w / 2 beside the curve and flat ends. A pixel is vessel where its
centre lies inside; nothing here is segpipe's. Points are x + iy, lengths in field diameters about
the field's centre; pixel (row r, column c) of a field of D px has its centre at
(c + 0.5) / D - 0.5 + i ((r + 0.5) / D - 0.5).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ellipe

OUTSIDE, VESSEL, BACKGROUND = 0, 1, 2  # of a mask
ROUGH = 2000  # points of a curve
CORNERS = 24  # of the disc at a joint

Points = npt.NDArray[np.complex128]
Image8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """Outlines, all turning one way, and what is true of them; lengths in field diameters."""

    name: str
    width: float
    outlines: list[Points]
    length: float
    """Of the centre lines."""
    area: float
    chord: float
    """Sum of the distances between the ends of its segments."""
    squared_curvature: float = 0.0
    """Its integral along the centre lines, 1 / diameter."""
    branch_points: int = 0
    branch_angle: float = math.nan
    """Between the daughters of a branch point of three, degrees."""
    more: dict[str, float] = field(default_factory=dict)


def draw(shape: Shape, diameter: int, angle: float, offset: complex = 0.0) -> Image8:
    """-> mask [diameter, diameter] uint8 of a round field with the shape turned by `angle` degrees
    and moved by `offset` px."""
    turn = cmath.exp(1j * math.radians(angle)) * diameter
    centre = (0.5 + 0.5j) * diameter + offset
    vessel = inside([outline * turn + centre for outline in shape.outlines], diameter)
    at = np.arange(diameter) + 0.5 - diameter / 2
    fov = at[:, None] ** 2 + at**2 <= (diameter / 2) ** 2
    return np.where(fov, np.where(vessel, VESSEL, BACKGROUND), OUTSIDE).astype(np.uint8)


def inside(outlines: list[Points], side: int) -> npt.NDArray[np.bool_]:
    """Closed outlines in px -> [side, side]: pixels whose centre lies inside one (nonzero winding).

    Every edge that crosses a row's middle changes the winding of all centres to its right by one.
    """
    start = np.concatenate(outlines)
    end = np.concatenate([np.roll(outline, -1) for outline in outlines])
    down = end.imag > start.imag
    upper, lower = np.where(down, start, end), np.where(down, end, start)
    first = np.ceil(upper.imag - 0.5).astype(np.int64)
    num = np.ceil(lower.imag - 0.5).astype(np.int64) - first  # rows that it crosses
    edge = np.repeat(np.arange(len(start)), num)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(num) - num, num) + first[edge]
    share = (row + 0.5 - upper.imag[edge]) / (lower.imag - upper.imag)[edge]
    crossing = upper.real[edge] + share * (lower.real - upper.real)[edge]
    column = np.ceil(crossing - 0.5).astype(np.int64).clip(0, side)
    winding = np.zeros((side, side + 1), np.int64)
    kept = (row >= 0) & (row < side)
    np.add.at(winding, (row[kept], column[kept]), np.where(down, 1, -1)[edge][kept])
    return winding[:, :side].cumsum(axis=1) != 0


def strip(curve: Points, normal: Points, width: float) -> Points:
    """The outline about a curve [N] whose unit normals are `normal` [N]."""
    return np.concatenate([curve + width / 2 * normal, (curve - width / 2 * normal)[::-1]])


def straight(width: float, length: float = 0.75) -> Shape:
    line = np.array([-0.5, 0.5]) * length + 0j
    outline = strip(line, np.full(2, 1j), width)
    return Shape("straight", width, [outline], length, length * width, length)


def arc(width: float, radius: float = 0.3, degrees: float = 150.0) -> Shape:
    """An arc of a circle, whose centre lies in the field's."""
    span = math.radians(degrees)
    normal = np.exp(1j * np.linspace(0, span, ROUGH))
    length = radius * span
    return Shape(
        *("arc", width, [strip(radius * normal, normal, width)], length, length * width),
        chord=2 * radius * math.sin(span / 2),
        squared_curvature=span / radius,
    )


def sine(width: float, height: float = 0.04, period: float = 0.25, periods: int = 3) -> Shape:
    """Whole periods of height sin(2 pi x / period). Its length is an elliptic integral of the
    second kind; the integral of its squared curvature, which is smooth and periodic, a mean."""
    k = 2 * math.pi / period
    x = np.linspace(-0.5, 0.5, 3 * ROUGH) * period * periods
    slope = height * k * np.cos(k * x)
    normal = 1j * (1 + 1j * slope) / np.abs(1 + 1j * slope)
    outline = strip(x + 1j * height * np.sin(k * x), normal, width)
    steep = (height * k) ** 2
    wave = 4 * math.sqrt(1 + steep) / k * float(ellipe(steep / (1 + steep)))  # length of a period
    phase = 2 * np.pi * np.arange(ROUGH) / ROUGH
    bend = (height * k**2 * np.sin(phase)) ** 2 / (1 + steep * np.cos(phase) ** 2) ** 2.5
    return Shape(
        *("sine", width, [outline], periods * wave, periods * wave * width),
        chord=periods * period,
        squared_curvature=float(bend.mean()) * period * periods,
    )


def star(name: str, width: float, angles: list[float], length: float) -> Shape:
    """Straight arms from the centre at `angles`, degrees ascending; walls meet in mitres.

    Of two arms at an angle t the mitre takes (w / 2)^2 / tan(t / 2) from both areas together.
    """
    turns = [math.radians(angle) for angle in angles]
    corners, area = [], len(angles) * length * width
    for here, after in zip(turns, [*turns[1:], turns[0] + 2 * math.pi], strict=True):
        arm, between = cmath.exp(1j * here), after - here
        corners += [arm * (length + 1j * side * width / 2) for side in (-1, 1)]
        reach = width / 2 / math.sin(between / 2)  # below 0 on the far side of the centre
        corners.append(reach * cmath.exp(1j * (here + between / 2)))
        area -= (width / 2) ** 2 / math.tan(between / 2)
    total = len(angles) * length
    return Shape(name, width, [np.array(corners)], total, area, total, branch_points=1)


def fork(width: float, between: float = 70.0, length: float = 0.35) -> Shape:
    """A Y: a stem and two daughters as wide, `between` degrees apart."""
    shape = star("Y", width, [-between / 2, between / 2, 180.0], length)
    return Shape(**{**vars(shape), "branch_angle": between})


def spokes(width: float, num: int = 7, length: float = 0.4) -> Shape:
    return star("spokes", width, [360 * arm / num for arm in range(num)], length)


def koch_points(levels: int, size: float, bend: float = 60.0) -> Points:
    """The Koch curve's corners [4^levels + 1] from -size / 2 to size / 2; other bends than 60
    degrees are Cesàro's curves, of dimension log 4 / log(2 + 2 cos bend)."""
    up = cmath.exp(1j * math.radians(bend))
    share = 1 / (2 + 2 * math.cos(math.radians(bend)))
    points = np.array([0, 1], np.complex128)
    for _ in range(levels):
        shift, turn = 0j, [1, up, up.conjugate(), 1]
        pieces = []
        for part in turn:
            pieces.append(shift + share * part * points[:-1])
            shift += share * part
        points = np.append(np.concatenate(pieces), 1)
    middle = (points.imag.min() + points.imag.max()) / 2
    return np.asarray((points - 0.5 - 1j * middle) * size)


def koch(width: float, levels: int = 5, size: float = 0.8) -> Shape:
    """Straight strips between the corners, joined by discs. Of its answers only the dimension."""
    points = koch_points(levels, size)
    along = np.diff(points)
    normal = 1j * along / np.abs(along)
    ring = np.exp(-2j * np.pi * np.arange(CORNERS) / CORNERS)
    strips = [strip(points[n : n + 2], np.full(2, normal[n]), width) for n in range(len(along))] + [
        point + width / 2 * ring for point in points
    ]
    return Shape(
        *("Koch", width, strips, math.nan, math.nan, math.nan),
        squared_curvature=math.nan,
        more={"fractal_dimension": math.log(4) / math.log(3)},
    )


VEIN_WIDTH = 1.5  # of the artery beside it
PAIRS = ("straight", "arc")


def beside(name: str, width: float) -> dict[str, Shape]:
    """An artery of this width and a wider vein that runs beside it, one such width between them:
    both of one shape of PAIRS, arcs of circles about one centre."""
    wide = VEIN_WIDTH * width
    apart = width + (width + wide) / 2  # of the centre lines
    if name == "arc":
        return {"artery": arc(width, 0.3), "vein": arc(wide, 0.3 + apart)}
    artery, vein = straight(width), straight(wide)
    return {
        "artery": replace(artery, outlines=[one - 0.5j * apart for one in artery.outlines]),
        "vein": replace(vein, outlines=[one + 0.5j * apart for one in vein.outlines]),
    }


def draw_kinds(pair: dict[str, Shape], diameter: int, angle: float, offset: complex) -> Image8:
    """-> [diameter, diameter] uint8: 0 outside the field, 1 artery, 2 vein, 4 background."""
    artery, vein = (draw(pair[kind], diameter, angle, offset) for kind in ("artery", "vein"))
    other = np.where(artery == OUTSIDE, OUTSIDE, 4)
    found = np.where(artery == VESSEL, 1, np.where(vein == VESSEL, 2, other))
    return found.astype(np.uint8)


SHAPES: dict[str, Callable[[float], Shape]] = {
    "straight": straight,
    "arc": arc,
    "sine": sine,
    "Y": fork,
    "spokes": spokes,
    "Koch": koch,
}
