"""Drawn photographs as files: a labelled set in DRIVE's layout, and an archive of mixed kinds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from segpipe.data.arrays import Image8, Mask
from segpipe.data.synthetic import Rng, clouds, draw_fundus

FORMATS: dict[str, dict[str, int]] = {
    "jpg": {"quality": 90},
    "png": {"compress_level": 1},  # zlib level: a demo waits for speed, not for bytes
    "tif": {},
    "ppm": {},
}
FRAMES = (  # height / width, field diameter / width
    (1.0, 0.95),  # as DRIVE's
    (0.67, 0.64),  # landscape, the field in its middle
    (0.8, 0.96),  # the field cut off at the top and at the bottom
)
LARGE_EVERY, LARGE_FIRST = 15, 4  # images 4, 19, 34, ... are large: one of each format in 60
FOLDERS = ("", "clinic a", "Augenklinik Köln", "2019/spring visit")  # names as archives have them
LABELLED_OPTIONS: dict[str, dict[str, Any]] = {
    ".tif": {"compression": "tiff_lzw"},  # as DRIVE's
    ".gif": {"optimize": False},  # keeps a grey palette, so that pixels read as 0 and 255
}
PARTIAL = ".segpipe-tmp"  # suffix of a file that is still being written


def write_labelled(root: Path, num_training: int = 20, num_test: int = 20, seed: int = 0) -> None:
    """A labelled set in DRIVE's layout: test 1..num_test, then training on from there."""
    for number in range(1, num_test + num_training + 1):
        write_labelled_example(root, "test" if number <= num_test else "training", number, seed)


def write_labelled_example(root: Path, split: str, number: int, seed: int) -> None:
    """One example of `write_labelled`, a pure function of (split, number, seed).

    Files that exist are left alone. `split` is "training" or "test"; only the latter has a second
    observer.
    """
    if split not in ("training", "test"):
        raise ValueError(f"split {split!r} is neither training nor test")
    folder, name = Path(root) / split, f"{number:02d}"
    paths = {
        "image": folder / "images" / f"{name}_{split}.tif",
        "vessel": folder / "1st_manual" / f"{name}_manual1.gif",
        "fov": folder / "mask" / f"{name}_{split}_mask.gif",
    }
    if split == "test":
        paths["second"] = folder / "2nd_manual" / f"{name}_manual2.gif"
    if all(path.exists() for path in paths.values()):
        return
    rng = np.random.default_rng([seed, number])
    image, vessel, fov = draw_fundus(int(rng.integers(2**32)))
    second = _second_observer(rng, vessel) & fov
    drawn: dict[str, Image8 | Mask] = {
        "image": image,
        "vessel": vessel,
        "fov": fov,
        "second": second,
    }
    for what, path in paths.items():
        _save(path, drawn[what], LABELLED_OPTIONS[path.suffix])


def _second_observer(rng: Rng, vessel: Mask) -> Mask:
    """Another human's label: edges drift by about a pixel, so that thin vessels go missing."""
    inside = ndimage.distance_transform_edt(vessel) - ndimage.distance_transform_edt(~vessel)
    drift = 1.2 * clouds(rng, vessel.shape, 4.0) + rng.uniform(-0.4, 0.1)
    redrawn: Mask = inside + drift > 0
    return redrawn


def write_archive_image(root: Path, index: int, seed: int) -> Path:
    """Image `index` of a mixed archive, a pure function of (index, seed) -> its path.

    Formats come in turn; sizes, frames and folders as a clinic's cameras and habits leave them.
    """
    rng = np.random.default_rng([seed, index, 1])  # 1: not the eyes of the labelled set
    turn, place = divmod(index, len(FORMATS))
    extension = list(FORMATS)[place]
    path = Path(root) / FOLDERS[turn % len(FOLDERS)] / f"fundus_{index:05d}.{extension}"
    if not path.exists():
        height, width, diameter = _archive_frame(rng, index)
        image, _, _ = draw_fundus(int(rng.integers(2**32)), height, width, diameter)
        _save(path, image, FORMATS[extension])
    return path


def _archive_frame(rng: Rng, index: int) -> tuple[int, int, float]:
    """-> height, width, field diameter in px of one of three kinds of camera frame."""
    large = index % LARGE_EVERY == LARGE_FIRST
    width = int(rng.integers(2000, 4001) if large else rng.integers(500, 1601))
    aspect, diameter = FRAMES[rng.integers(len(FRAMES))]
    return round(width * aspect), width, width * diameter


def _save(path: Path, array: Image8 | Mask, options: Mapping[str, Any]) -> None:
    """Write the whole file or nothing; one that exists is left alone."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    picture = Image.fromarray(array.astype(np.uint8) * np.uint8(255 if array.dtype == bool else 1))
    try:
        picture.save(partial, Image.registered_extensions()[path.suffix], **options)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
