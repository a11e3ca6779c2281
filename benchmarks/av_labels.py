"""Labels of arteries, veins and the optic disc, of the sets below SEGPIPE_DATA."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from common import data_folder

from segpipe.data.arrays import Image8
from segpipe.data.codecs import decode_photograph
from segpipe.data.colours import SCHEMES
from segpipe.data.layouts import Example
from segpipe.evaluate import discs
from segpipe.evaluate.discs import DiscRow
from segpipe.storage import open_store

OUTSIDE, BACKGROUND, ARTERY, VEIN, UNKNOWN = range(5)  # of a label; the disc's bits come on top
KIND_BITS, IN_DISC, DISC_UNKNOWN = 7, 8, 16


def disc_of(name: str, example: Example) -> DiscRow | None:
    """None where discs.csv does not name the photograph."""
    file, store = str(data_folder() / "discs.csv"), open_store(str(data_folder() / name))
    return discs.discs_of(discs.read_discs(file), file, store, [example], name).get(example.name)


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
    row = disc_of(name, example)
    if row is None or row.ok == discs.WRONG:
        label += DISC_UNKNOWN
    elif disc := row.label:
        axes = round(disc.width / 2), round(disc.height / 2)
        inside = np.zeros_like(label)
        cv2.ellipse(inside, (round(disc.x), round(disc.y)), axes, 0, 0, 360, IN_DISC, -1)
        label += inside
    return np.where(fov, label, OUTSIDE).astype(np.uint8)
