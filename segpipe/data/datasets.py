"""Labelled photographs: an example's files -> image, label and field of view."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from segpipe.data import colours
from segpipe.data.arrays import Image8, Mask
from segpipe.data.classes import classes_of
from segpipe.data.codecs import decode_photograph
from segpipe.data.drawings import SAME_PLACE, Drawing, NotTwoValued, contrast, read_drawing
from segpipe.data.fov import find_fov
from segpipe.data.layouts import GZIPPED, Example
from segpipe.data.photograph import Photograph
from segpipe.errors import Fault, RejectedImage, UserError

if TYPE_CHECKING:
    from segpipe.storage import Source  # its libraries stay out of processes that only decode


MOST_UNPACKED = 1_200_000_000  # bytes of a gzipped file: 200 megapixels of RGB in 16 bits


@dataclass(frozen=True)
class Labelled:
    """image [H, W, 3] uint8, label [H, W] uint8 (the class of each pixel), fov [H, W] bool."""

    image: Image8
    label: Image8
    fov: Mask
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
        photograph, drawing_of(store, example, example.label).foreground
    )
    image = photograph.shown if shown else photograph.image
    vessel = _foreground(store, example, example.label, image.shape)
    if find_field or example.mask is None:
        fov = _found(store, example, image)
    else:
        fov = _foreground(store, example, example.mask, image.shape)
        if not fov.any():
            raise UserError(
                f"{store.uri(example.mask)}: the field of view is empty, draw it or leave masks out"
            )
    return Labelled(image, classes_of(vessel, fov), fov, photograph.orientation, shown)


def _is_drawn_on_shown(photograph: Photograph, vessel: Mask) -> bool:
    """Whether vessels [H, W] lie where the photograph has some as it is shown, not as stored."""
    stored, shown = photograph.image, photograph.shown
    if stored.shape != shown.shape:
        return shown.shape[:2] == vessel.shape
    if stored.shape[:2] != vessel.shape or _found_contrast(stored, vessel) >= SAME_PLACE:
        return False
    return _found_contrast(shown, vessel) >= SAME_PLACE


def _found_contrast(image: Image8, vessel: Mask) -> float:
    """The contrast in the field that is found; NaN without any."""
    try:
        return contrast(image, vessel, find_fov(image))
    except RejectedImage:
        return float("nan")


def load_second(store: Source, example: Example, like: Labelled) -> Image8 | None:
    """The label [H, W] uint8 as the second observer drew it, or None where nobody did."""
    if example.second is None:
        return None
    vessel = _foreground(store, example, example.second, like.fov.shape)
    return classes_of(vessel, like.fov)


def load_kinds(store: Source, example: Example, like: Labelled) -> Image8 | None:
    """What its drawing of arteries and veins tells [H, W] uint8, as Drawing.meanings; None where
    there is none. Raises UserError that names the file that does not fit."""
    if example.kinds is None:
        return None
    own = replace(example, label=example.kinds, colours=example.kind_colours)
    drawing = _fitting(store, own, example.kinds, like.fov.shape)
    if drawing.problem or drawing.meanings is None:
        told = drawing.text or "holds no colours"
        raise UserError(
            f"{store.uri(example.kinds)}: {told}, wanted {example.kind_colours}; replace it"
        )
    return drawing.meanings


def field_overlap(store: Source, example: Example, image: Image8) -> float | None:
    """Intersection over union of the set's field of view and the one that is found in the image.

    0.0 where none is found, None where the set gives none. Raises UserError as load_example does.
    """
    if example.mask is None:
        return None
    given = _foreground(store, example, example.mask, image.shape)
    try:
        found = find_fov(image)
    except RejectedImage:
        return 0.0
    return float((given & found).sum() / (given | found).sum())


def drawing_of(store: Source, example: Example, key: str) -> Drawing:
    """One of an example's drawings. Raises UserError where it cannot be read as one."""
    is_mask = key == example.mask
    scheme = None if is_mask or not example.colours else colours.Scheme.parse(example.colours)
    try:
        return _decoded(store, key, partial(read_drawing, scheme=scheme))
    except NotTwoValued as error:
        wanted = "save it as white on black"
        if error.coloured and not is_mask:
            wanted += f", or give each colour's meaning as {colours.FLAG} {colours.FORM}"
        raise UserError(f"{store.uri(key)}: {error}; {wanted}") from error


def _foreground(store: Source, example: Example, key: str, shape: tuple[int, ...]) -> Mask:
    """A drawing on its image, which has this shape -> [H, W] bool."""
    return _fitting(store, example, key, shape).foreground


def _fitting(store: Source, example: Example, key: str, shape: tuple[int, ...]) -> Drawing:
    """A drawing that has the shape of its image."""
    drawing = drawing_of(store, example, key)
    if drawing.foreground.shape != shape[:2]:
        raise UserError(
            f"{store.uri(key)}: {_size(drawing.foreground.shape)} px, but its image "
            f"{example.image} has {_size(shape)} px, give both one size"
        )
    return drawing


def _found(store: Source, example: Example, image: Image8) -> Mask:
    try:
        return find_fov(image)
    except RejectedImage as error:
        more = "the set gives no mask" if example.mask is None else "the set's mask is not used"
        raise UserError(f"{store.uri(example.image)}: {error}, and {more}, leave it out") from error


Decoded = TypeVar("Decoded")


def _decoded(store: Source, key: str, decode: Callable[[bytes], Decoded]) -> Decoded:
    try:
        return decode(_unpacked(key, store.get(key)))
    except NotTwoValued:
        raise
    except (RejectedImage, OSError, SyntaxError) as error:
        raise UserError(
            f"{store.uri(key)}: cannot be read as an image ({error}), replace it"
        ) from error


def _unpacked(key: str, data: bytes) -> bytes:
    """What gzip packed, where the key says so. Raises RejectedImage."""
    if not key.lower().endswith(GZIPPED):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            content = packed.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RejectedImage(Fault.DAMAGED_FILE, f"gzip: {error}") from error
    if len(content) > MOST_UNPACKED:
        raise RejectedImage(Fault.FILE_TOO_LARGE, f"more than {MOST_UNPACKED} bytes in gzip")
    return content


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
