"""A labelled set in DRIVE's layout -> examples.

    training/images/21_training.tif   training/1st_manual/21_manual1.gif   training/mask/21_...gif
    test/images/01_test.tif           test/1st_manual, test/mask, test/2nd_manual/01_manual2.gif

Classes: 0 outside the field of view, 1 vessel, 2 background. Outside wins over a drawn vessel.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segpipe.data.classes import classes_of
from segpipe.data.codecs import EXTENSIONS, decode_binary, decode_image
from segpipe.errors import RejectedImage, UserError

if TYPE_CHECKING:
    from segpipe.storage import Source  # its libraries stay out of processes that only decode

SPLITS = ("training", "test")


@dataclass(frozen=True)
class Example:
    """The keys of one labelled photograph; `second` is a second observer's drawing, if any."""

    name: str
    image: str
    manual: str
    mask: str
    second: str | None


@dataclass(frozen=True)
class Labelled:
    """image [H, W, 3] uint8, label [H, W] uint8 (the class of each pixel), fov [H, W] bool."""

    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    fov: npt.NDArray[np.bool_]


def find_examples(store: Source, split: str) -> list[Example]:
    """The split's examples in order of their names. Raises UserError that says what is missing."""
    keys = {entry.key for entry in store.list(f"{split}/")}
    images = sorted(key for key in keys if _is_image(key, f"{split}/images"))
    if not images:
        raise UserError(
            f"{store.uri()}: not in DRIVE's layout, no images in {split}/images/ "
            "(wanted training/ and test/, each with images/, 1st_manual/ and mask/)"
        )
    return [_example(store, split, key, keys) for key in images]


def _is_image(key: str, folder: str) -> bool:
    extension = posixpath.splitext(key)[1].lower()
    return posixpath.dirname(key) == folder and extension in EXTENSIONS


def _example(store: Source, split: str, image: str, keys: set[str]) -> Example:
    stem = posixpath.splitext(posixpath.basename(image))[0]
    number = stem.split("_")[0]
    wanted = {
        "manual": f"{split}/1st_manual/{number}_manual1.gif",
        "mask": f"{split}/mask/{stem}_mask.gif",
    }
    for what, key in wanted.items():
        if key not in keys:
            raise UserError(f"{store.uri(image)}: its {what} is missing, wanted {store.uri(key)}")
    second = f"{split}/2nd_manual/{number}_manual2.gif"
    return Example(
        stem, image, wanted["manual"], wanted["mask"], second if second in keys else None
    )


def load_example(store: Source, example: Example) -> Labelled:
    """Read and decode one example. Raises UserError that names the file that does not fit."""
    image = _decoded(store, example.image, decode_image)
    vessel = _decoded(store, example.manual, decode_binary)
    fov = _decoded(store, example.mask, decode_binary)
    for key, drawn in ((example.manual, vessel), (example.mask, fov)):
        if drawn.shape != image.shape[:2]:
            raise UserError(
                f"{store.uri(key)}: {_size(drawn)} px, but its image {example.image} "
                f"has {_size(image)} px"
            )
    if not fov.any():
        raise UserError(f"{store.uri(example.mask)}: the field of view is empty")
    return Labelled(image, classes_of(vessel, fov), fov)


def load_second(store: Source, example: Example, like: Labelled) -> npt.NDArray[np.uint8] | None:
    """The label [H, W] uint8 as the second observer drew it, or None where nobody did."""
    if example.second is None:
        return None
    vessel = _decoded(store, example.second, decode_binary)
    if vessel.shape != like.fov.shape:
        raise UserError(
            f"{store.uri(example.second)}: {_size(vessel)} px, wanted {_size(like.fov)} px"
        )
    return classes_of(vessel, like.fov)


def _decoded(
    store: Source, key: str, decode: Callable[[bytes], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    try:
        return decode(store.get(key))
    except (RejectedImage, OSError, SyntaxError) as error:
        raise UserError(f"{store.uri(key)}: cannot be read as an image ({error})") from error


def _size(array: npt.NDArray[Any]) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
