"""How far each measurement of an eye moves as its photograph does, beside how far eyes differ.

    python benchmarks/repeatability.py

Needs HRF below SEGPIPE_DATA: its photographs 06 to 15, which nothing was trained on. Each is
measured as it is, rotated by 10 degrees, mirrored, as a JPEG of quality 75, and at half its size.
Writes results/repeatability.md.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
from common import data_folder, facts, write
from PIL import Image

import segpipe
from segpipe.data.arrays import Image8
from segpipe.data.codecs import decode_photograph
from segpipe.data.layouts import open_labelled
from segpipe.segment.library import Model, Result
from segpipe.segment.rows import COLUMNS
from segpipe.storage import open_store

DEGREES, QUALITY, HALF = 10.0, 75, 0.5
OF_PLACE = {"disc_x_px", "disc_y_px", "disc_right_of_middle", "disc_below_middle"}
"""Columns that a turn or a mirror is to change."""


def rotated(image: Image8) -> Image8:
    """About its middle, in a picture that holds all of it."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), DEGREES, 1.0)
    cos, sin = abs(turn[0, 0]), abs(turn[0, 1])
    size = math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos)
    turn[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    return np.asarray(cv2.warpAffine(image, turn, size, flags=cv2.INTER_CUBIC), np.uint8)


def compressed(image: Image8) -> Image8:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file))


def halved(image: Image8) -> Image8:
    return np.asarray(cv2.resize(image, None, fx=HALF, fy=HALF, interpolation=cv2.INTER_AREA))


CHANGES: dict[str, Callable[[Image8], Image8]] = {
    f"rotated by {DEGREES:g} degrees": rotated,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    f"JPEG quality {QUALITY}": compressed,
    "half size": halved,
}


def columns_of(result: Result, factor: float) -> dict[str, float]:
    """A photograph's figures; those in px as at the first photograph's size."""
    values: dict[str, Any] = asdict(result.measurements) | asdict(result.quality)
    values |= result.structures or {}
    if result.disc:
        values |= {f"disc_{name}_px": one for name, one in asdict(result.disc).items()}
        values["disc_confidence"] = values.pop("disc_confidence_px")
    found = {}
    for column in COLUMNS:
        value = values.get(column.name)
        if isinstance(value, int | float) and column.name not in OF_PLACE:
            power = {"px": -1, "1/px": 1, "1/px^2": 2}.get(column.unit, 0)
            found[column.name] = float(value) * factor**power
    return found


def measured(model: Model, image: Image8, factor: float = 1.0) -> dict[str, float]:
    return columns_of(model.segment(image), factor)


def main() -> None:
    cv2.setNumThreads(1)
    model = segpipe.load_model(structures=True)
    store = open_store(str(data_folder() / "HRF"))
    plain: list[dict[str, float]] = []
    changed: dict[str, list[dict[str, float]]] = defaultdict(list)
    for example in open_labelled(store).test:
        image = decode_photograph(store.get(example.image)).image
        plain.append(measured(model, image))
        for name, change in CHANGES.items():
            factor = HALF if change is halved else 1.0
            changed[name].append(measured(model, change(image), factor))
    lines = [
        *facts("python benchmarks/repeatability.py"),
        f"- engine: {model.engine}",
        "",
        f"{len(plain)} photographs, HRF 06 to 15. The root mean square of how far a figure moves",
        "as its photograph does, divided by the square root of 2, is the standard deviation within",
        "an eye: here as a share of that between eyes. `photographs`: on how many it could be",
        "measured both times, of the change with fewest. px are those of the whole photograph.",
        "",
        f"| | between eyes: mean, standard deviation | {' | '.join(CHANGES)} | photographs |",
        f"|---|---|{'---|' * len(CHANGES)}---|",
    ]
    for column in COLUMNS:
        eyes = np.asarray([one.get(column.name, math.nan) for one in plain])
        if np.isfinite(eyes).sum() < 2:
            continue
        spread, shares, counts = float(np.nanstd(eyes, ddof=1)), [], []
        for name in CHANGES:
            other = np.asarray([one.get(column.name, math.nan) for one in changed[name]])
            moved = (other - eyes)[np.isfinite(other - eyes)]
            counts.append(len(moved))
            within = math.sqrt(float(np.mean(moved**2)) / 2) if len(moved) else math.nan
            shares.append(f"{within / spread:.0%}" if spread and len(moved) else "–")
        middle = f"{np.nanmean(eyes):.4g}, {spread:.3g}"
        lines.append(f"| `{column.name}` | {middle} | {' | '.join(shares)} | {min(counts)} |")
    write("repeatability.md", lines)


if __name__ == "__main__":
    main()
