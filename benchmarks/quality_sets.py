"""The photographs and pictures that benchmarks/quality.py fits and tests by."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage
import sklearn
from common import drive
from PIL import Image
from quality_pictures import DEGRADATIONS, LEVELS, Labelled, mixed, negative, swaps

from segpipe.data.arrays import Image8

MIXED = 6  # combinations of degradations for each photograph


def seed(*words: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def rgb(path: Path) -> Image8:
    return np.asarray(Image.open(path).convert("RGB"))


def grey(path: Path) -> npt.NDArray[np.bool_]:
    return np.asarray(Image.open(path).convert("L")) > 127


def bundled(name: str) -> Path:
    """A picture of scikit-image or scikit-learn."""
    first = Path(skimage.__file__).parent / "data" / name
    return first if first.exists() else Path(sklearn.__file__).parent / "datasets/images" / name


# ---- photographs


def of_training() -> Iterator[tuple[str, Labelled]]:
    for path in sorted(drive().glob("training/images/*.tif")):
        folder, number = path.parents[1], path.name[:2]
        label = grey(folder / f"1st_manual/{number}_manual1.gif")
        yield (
            f"drive{number}",
            Labelled(rgb(path), label, grey(folder / f"mask/{path.stem}_mask.gif")),
        )
    folder = drive().parent / "HRF"
    for path in sorted((folder / "images").iterdir()):
        if path.name < "06":
            drawn = folder / f"manual1/{path.stem}.tif", folder / f"mask/{path.stem}_mask.tif"
            planes = [np.asarray(Image.open(one).convert("L").reduce(3)) > 127 for one in drawn]
            yield f"hrf{path.stem}", Labelled(np.asarray(Image.open(path).reduce(3)), *planes)


def of_stare() -> Iterator[tuple[str, Labelled]]:
    folder = drive().parent / "STARE"
    for path in sorted((folder / "stare-images").glob("*.ppm")):
        label = grey(folder / f"labels-ah/{path.stem}.ah.pgm")
        yield (
            f"stare{path.stem}",
            Labelled(rgb(path), label, grey(folder / f"mask/{path.stem}_mask.gif")),
        )


def degraded(name: str, one: Labelled) -> Iterator[tuple[str, int, Labelled]]:
    """(kind, level, the photograph so degraded); level -1 as it is."""
    yield "none", -1, one
    for kind, degrade in DEGRADATIONS.items():
        for level in range(LEVELS):
            yield kind, level, degrade(one, level, seed(name, kind, level))
    for number in range(MIXED):
        yield "mixed", number, mixed(one, seed(name, "mixed", number))


def no_retinas(image: Image8, fov: npt.NDArray[np.bool_]) -> Iterator[tuple[str, Image8]]:
    """What a photograph becomes when its values or channels are not what they should be."""
    yield "negative", negative(image)
    yield "negative, frame black", np.where(fov[..., None], negative(image), image)
    for order, swapped in swaps(image).items():
        yield f"channels {order}", swapped


def in_a_circle(image: Image8) -> Image8:
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - height / 2, x - width / 2) < min(height, width) / 2
    return np.where(away[..., None], image, np.uint8(0))
