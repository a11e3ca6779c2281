"""Labels of arteries, veins and the optic disc, of the sets below SEGPIPE_DATA."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from common import data_folder

from segpipe.data.arrays import Image8
from segpipe.data.codecs import decode_photograph
from segpipe.data.colours import SCHEMES
from segpipe.data.layouts import Example

OUTSIDE, BACKGROUND, ARTERY, VEIN, UNKNOWN = range(5)  # of a label; the disc's bits come on top
KIND_BITS, IN_DISC, DISC_UNKNOWN = 7, 8, 16
RIGHT, WRONG, NONE = "1", "0", "none"
"""What is known of a row of discs.csv: it is right, wrong, or there is no disc."""

Disc = tuple[str, list[float]]
"""What is known, and centre x and y, height and width in px."""


def discs(name: str) -> dict[str, Disc]:
    """Of a set's photographs, by file."""
    with (data_folder() / "discs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == name]
    return {
        row["file"]: (
            row["ok"],
            [float(row[key] or "nan") for key in ("x", "y", "height", "width")],
        )
        for row in rows
    }


def disc_of(name: str, example: Example) -> Disc | None:
    """None where discs.csv does not name the photograph."""
    found = discs(name)
    keys = example.image.replace("/images/", "/"), Path(example.image).name
    return next((found[key] for key in keys if key in found), None)


def kinds_file(name: str, example: Example) -> Path:
    if name == "HRF":
        return data_folder() / "HRF" / "manual_av" / f"{example.name}.png"
    split = example.image.partition("/")[0]
    return data_folder() / "DRIVE_AV" / split / f"{example.name.partition('_')[0]}_av.png"


def label_of(name: str, example: Example, fov: Image8) -> Image8:
    """[H, W] uint8: the kind of each pixel and the disc's bits; fov [H, W] uint8, 0 outside."""
    scheme = SCHEMES["HRF" if name == "HRF" else "DRIVE_AV"]
    colours = decode_photograph(kinds_file(name, example).read_bytes()).image
    label = np.full(colours.shape[:2], UNKNOWN, np.uint8)
    label[(colours == 0).all(axis=2)] = BACKGROUND
    for code, meaning in ((ARTERY, "artery"), (VEIN, "vein")):
        for colour in scheme.colours(meaning):
            label[(colours == colour).all(axis=2)] = code
    known, (x, y, height, width) = disc_of(name, example) or (WRONG, [0.0] * 4)
    if known == RIGHT:
        axes = round(width / 2), round(height / 2)
        inside = np.zeros_like(label)
        cv2.ellipse(inside, (round(x), round(y)), axes, 0, 0, 360, IN_DISC, -1)
        label += inside
    elif known == WRONG:
        label += DISC_UNKNOWN
    return np.where(fov, label, OUTSIDE).astype(np.uint8)
