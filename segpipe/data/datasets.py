"""Labelled photographs: an example's files -> image, label and field of view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from segpipe.data.classes import classes_of
from segpipe.data.codecs import Photograph, decode_binary, decode_photograph
from segpipe.data.drawings import SAME_PLACE, contrast
from segpipe.data.fov import find_fov
from segpipe.data.layouts import Example
from segpipe.errors import RejectedImage, UserError

if TYPE_CHECKING:
    from segpipe.storage import Source  # its libraries stay out of processes that only decode


@dataclass(frozen=True)
class Labelled:
    """image [H, W, 3] uint8, label [H, W] uint8 (the class of each pixel), fov [H, W] bool."""

    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    fov: npt.NDArray[np.bool_]
    orientation: int = 1
    """EXIF's, of the photograph's file."""
    shown: bool = False
    """Whether the image is turned by it: its label was drawn on the photograph as it is shown."""


def load_example(store: Source, example: Example, find_field: bool = False) -> Labelled:
    """Read and decode one example.

    Its field of view is found where the set gives none, or with `find_field` also where it does.
    A photograph that EXIF turns lies as its file stores it, or turned where only then its label
    fits. Raises UserError that names the file that does not fit.
    """
    photograph = _decoded(store, example.image, decode_photograph)
    shown = photograph.orientation != 1 and _is_drawn_on_shown(
        photograph, _decoded(store, example.manual, decode_binary)
    )
    image = photograph.shown if shown else photograph.image
    vessel = _drawn(store, example.manual, example.image, image.shape)
    if find_field or example.mask is None:
        fov = _found(store, example, image)
    else:
        fov = _drawn(store, example.mask, example.image, image.shape)
        if not fov.any():
            raise UserError(
                f"{store.uri(example.mask)}: the field of view is empty, draw it or leave masks out"
            )
    return Labelled(image, classes_of(vessel, fov), fov, photograph.orientation, shown)


def _is_drawn_on_shown(photograph: Photograph, vessel: npt.NDArray[np.bool_]) -> bool:
    """Whether vessels [H, W] lie where the photograph has some as it is shown, not as stored."""
    stored, shown = photograph.image, photograph.shown
    if stored.shape != shown.shape:
        return shown.shape[:2] == vessel.shape
    if stored.shape[:2] != vessel.shape or _found_contrast(stored, vessel) >= SAME_PLACE:
        return False
    return _found_contrast(shown, vessel) >= SAME_PLACE


def _found_contrast(image: npt.NDArray[np.uint8], vessel: npt.NDArray[np.bool_]) -> float:
    """The contrast in the field that is found; NaN without any."""
    try:
        return contrast(image, vessel, find_fov(image))
    except RejectedImage:
        return float("nan")


def load_second(store: Source, example: Example, like: Labelled) -> npt.NDArray[np.uint8] | None:
    """The label [H, W] uint8 as the second observer drew it, or None where nobody did."""
    if example.second is None:
        return None
    vessel = _drawn(store, example.second, example.image, like.fov.shape)
    return classes_of(vessel, like.fov)


def field_overlap(store: Source, example: Example, image: npt.NDArray[np.uint8]) -> float | None:
    """Intersection over union of the set's field of view and the one that is found in the image.

    0.0 where none is found, None where the set gives none. Raises UserError as load_example does.
    """
    if example.mask is None:
        return None
    given = _drawn(store, example.mask, example.image, image.shape)
    try:
        found = find_fov(image)
    except RejectedImage:
        return 0.0
    return float((given & found).sum() / (given | found).sum())


def _drawn(store: Source, key: str, image: str, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A drawing on an image of this shape -> [H, W] bool."""
    drawn = _decoded(store, key, decode_binary)
    if drawn.shape != shape[:2]:
        raise UserError(
            f"{store.uri(key)}: {_size(drawn.shape)} px, but its image {image} "
            f"has {_size(shape)} px, give both one size"
        )
    return drawn


def _found(store: Source, example: Example, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    try:
        return find_fov(image)
    except RejectedImage as error:
        more = "the set gives no mask" if example.mask is None else "the set's mask is not used"
        raise UserError(f"{store.uri(example.image)}: {error}, and {more}, leave it out") from error


Decoded = TypeVar("Decoded")


def _decoded(store: Source, key: str, decode: Callable[[bytes], Decoded]) -> Decoded:
    try:
        return decode(store.get(key))
    except (RejectedImage, OSError, SyntaxError) as error:
        raise UserError(
            f"{store.uri(key)}: cannot be read as an image ({error}), replace it"
        ) from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
