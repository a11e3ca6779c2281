"""Encoded bytes -> canvas, field of view, geometry, in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from segpipe.data import codecs
from segpipe.data.arrays import Image8
from segpipe.data.canvas import (
    Diameter,
    Geometry,
    Working,
    canvas_side,
    fit_fov,
    fit_image,
    plan_fit,
)
from segpipe.data.fov import Field, find_field
from segpipe.data.photograph import NOTHING_SAID, Acquisition, Photograph, check_size
from segpipe.errors import RejectedImage

SHARP = 1.1  # times the least working diameter: what a field has at least in a reduced JPEG
STEPS = ("decode", "field", "resize")
PIXELS = 4  # it changes with what a photograph's bytes become: its field, its picture

Places = Callable[[int], tuple[Image8, Image8]]
"""A canvas's side S -> [S, S, 3] and [S, S]: where it and its field of view are to be."""


@dataclass(frozen=True)
class Fitted:
    """A photograph on the working canvas."""

    canvas: Image8
    """[S, S, 3] RGB, zeros beyond the fitted box."""
    fov: Image8
    """[S, S], 255 inside the field of view, soft at the rim where it was scaled."""
    geometry: Geometry
    orientation: int
    """As EXIF numbers it, 1 to 8; 1 is upright."""
    note: str
    """What was odd about the file or its field, or ''."""
    seconds: dict[str, float] = field(default_factory=dict)
    """On the clock, of each step: "decode", "field", "resize"."""
    uncertain_fraction: float = 0.0
    """Share of the picture that is left out of the field and may be retina."""
    second_fraction: float = 0.0
    """Share of the picture that other fields have."""
    acquisition: Acquisition = NOTHING_SAID
    """What the file says of how it was taken."""


def fit(
    data: bytes, working: Diameter, max_megapixels: float, into: Places | None = None
) -> Fitted:
    """An encoded photograph -> the same on the canvas of its working diameter, in process.

    Canvas and field are written into `into`, where these are given. Raises RejectedImage where the
    bytes are no photograph of a fundus.
    """
    enough, clock = SHARP * Working.of(working).least, _Clock()
    photograph = codecs.decode_photograph(data, max_megapixels, enough)
    clock.passed("decode")
    while (found := _field(photograph, enough)) is None:
        clock.passed("field")
        finer = photograph.reduction // 2
        photograph = codecs.decode_photograph(data, max_megapixels, min(photograph.size) / finer)
        clock.passed("decode")
    return _placed(photograph, found, working, clock, into)


def fit_array(image: Image8, working: Diameter) -> Fitted:
    """image [H, W, 3] uint8 RGB -> the same as `fit` of a lossless file with these pixels.

    Raises RejectedImage where there is no field of view, or a side of less than 16 px.
    """
    height, width = image.shape[:2]
    check_size(width, height, math.inf)
    clock = _Clock()
    photograph = Photograph(Image.fromarray(image), 1, "", (height, width))
    return _placed(photograph, find_field(photograph.picture), working, clock)


def _placed(
    photograph: Photograph,
    found: Field,
    working: Diameter,
    clock: _Clock,
    into: Places | None = None,
) -> Fitted:
    """A photograph whose field was found -> the same on its canvas."""
    reduction = photograph.reduction
    diameter = Working.of(working).near(found.diameter)  # in px that were decoded
    side = canvas_side(diameter)
    geometry = plan_fit(found.fov, diameter, photograph.size, reduction, found.diameter)
    clock.passed("field")
    to_canvas, to_fov = into(side) if into else (None, None)
    canvas = fit_image(photograph.picture, geometry, side, reduction, to_canvas)
    fov_canvas = fit_fov(found.fov, geometry, side, reduction, to_fov)
    clock.passed("resize")
    return Fitted(
        canvas,
        fov_canvas,
        geometry,
        photograph.orientation,
        "; ".join(note for note in (photograph.note, found.note) if note),
        clock.seconds,
        found.uncertain_fraction,
        found.second_fraction,
        photograph.acquisition,
    )


def _field(photograph: Photograph, enough: float) -> Field | None:
    """None where the photograph came reduced and its field is smaller than `enough` px, or none."""
    if photograph.reduction == 1:
        return find_field(photograph.picture)
    with suppress(RejectedImage):  # the whole photograph decides, and says why
        found = find_field(photograph.picture, photograph.reduction)
        return found if found.diameter >= enough else None
    return None


class _Clock:
    """Seconds of each step, in turns."""

    def __init__(self) -> None:
        self.seconds, self.last = dict.fromkeys(STEPS, 0.0), time.perf_counter()

    def passed(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] += now - self.last
        self.last = now
