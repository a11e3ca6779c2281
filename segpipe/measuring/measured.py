"""The files of one mask -> the columns of its row."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segpipe.data.arrays import Image8, Mask
from segpipe.data.canvas import fit_field
from segpipe.data.classes import OUTSIDE, classes_of
from segpipe.data.codecs import decode_photograph
from segpipe.data.colours import Scheme
from segpipe.data.fov import find_field
from segpipe.data.mask_files import MaskFile, read_mask
from segpipe.data.photograph import Photograph, joined
from segpipe.errors import Fault, RejectedImage
from segpipe.measurement import structures, vessels
from segpipe.measurement.kinds import told_kinds
from segpipe.measurement.quality import assess_quality
from segpipe.measurement.structures import Structures
from segpipe.measurement.traced import LARGEST_FIELD, trace_mask

DIAMETER = LARGEST_FIELD  # px across the field at which a photograph's quality is assessed
MOST_VESSEL = 0.5  # of the field; more is the background of a mask that is black on white
STEPS = ("decode", "field", "measure")


@dataclass(frozen=True)
class Files:
    """Encoded."""

    mask: bytes
    fov: bytes | None = None
    photograph: bytes | None = None


def measured(
    files: Files, scheme: Scheme | None, max_megapixels: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """-> the row's columns, seconds of each of STEPS.

    The field of view is that of the `fov` file, or of the mask's own classes, or the one that is
    found in the photograph. Raises RejectedImage where there is none, where sizes differ, and for
    files that cannot be read.
    """
    seconds = dict.fromkeys(STEPS, 0.0)
    with _timed(seconds, "decode"):
        mask = read_mask(files.mask, scheme, max_megapixels)
        size, given, photograph = mask.vessel.shape, None, None
        if files.fov is not None:
            with _named("field of view"):
                given = read_mask(files.fov, None, max_megapixels)
            _check_size("field of view", given.vessel.shape, size)
        if files.photograph is not None:
            with _named("photograph"):
                photograph = decode_photograph(files.photograph, max_megapixels)
            _check_size("photograph", photograph.size, size)
    with _timed(seconds, "field"):
        fov, of_field = _field(mask, given, photograph)
    classes = classes_of(mask.vessel, fov)
    if mask.fov is None:
        _refuse_inverted(classes)
    with _timed(seconds, "measure"):
        columns = measured_vessels(classes, mask.kinds)
        if photograph is not None:
            columns |= _quality(photograph, fov)
    notes = [mask.note, *(of_field.pop("notes", [])), photograph.note if photograph else ""]
    height, width = size
    columns |= of_field | {"height": height, "width": width, "note": joined(*notes) or None}
    columns["fov_fraction"] = np.count_nonzero(fov) / fov.size
    return {"status": "ok"} | {name: _plain(value) for name, value in columns.items()}, seconds


def measured_vessels(mask: Image8, kinds: Image8 | None) -> dict[str, Any]:
    """mask [H, W] uint8 classes -> the columns of its vessels, as `segpipe.measure` tells them;
    with the kinds [H, W] uint8 of its pixels those of arteries and veins too."""
    traced = None if kinds is None else trace_mask(mask)
    if traced is None or kinds is None:
        return asdict(vessels.measure(mask))
    found = Structures(traced, mask, told_kinds(traced, kinds), kinds, None)
    return asdict(structures.of_all_vessels(found, 1.0)) | structures.measure(found, 1.0)


def _field(
    mask: MaskFile, given: MaskFile | None, photograph: Photograph | None
) -> tuple[Mask, dict[str, Any]]:
    """-> the field [H, W] bool, what its columns and notes say of it."""
    told: dict[str, Any] = {}
    if given is not None:
        fov = given.vessel if given.fov is None else given.fov
    elif mask.fov is not None:
        fov = mask.fov
    elif photograph is not None:
        found = find_field(photograph.picture)
        fov = found.fov
        told = {
            "fov_uncertain_fraction": found.uncertain_fraction,
            "second_fov_fraction": found.second_fraction,
            "notes": [found.note],
        }
    else:
        raise RejectedImage(
            Fault.NO_FIELD_OF_VIEW,
            "is binary, which says nothing of the field of view: give --fov or --photographs",
        )
    if not fov.any():
        raise RejectedImage(Fault.NO_FIELD_OF_VIEW, "the given field of view is empty")
    return fov, told


def _quality(photograph: Photograph, fov: Mask) -> dict[str, Any]:
    """Columns that the photograph tells."""
    canvas, on_canvas, _ = fit_field(photograph.image, fov, DIAMETER)
    said = photograph.acquisition
    source = {"laterality_source": "file" if said.laterality else None}
    hints = asdict(assess_quality(canvas, on_canvas))
    del hints["quality"]  # which a network's score decides
    return hints | asdict(said) | source


def _refuse_inverted(classes: Image8) -> None:
    share = np.count_nonzero(classes == 1) / np.count_nonzero(classes != OUTSIDE)
    if share > MOST_VESSEL:
        raise RejectedImage(
            Fault.INVALID_PIXEL_VALUES,
            f"vessels are {share:.0%} of the field of view: is black drawn on white?",
        )


def _check_size(name: str, came: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if came != wanted:
        texts = [f"{width} x {height} px" for height, width in (came, wanted)]
        raise RejectedImage(
            Fault.SIZE_MISMATCH, f"its {name} has {texts[0]}, the mask itself {texts[1]}"
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """A rejection says which file it is of."""
    try:
        yield
    except RejectedImage as error:
        raise RejectedImage(error.fault, f"its {name}: {error}") from error


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] += time.perf_counter() - start


def _plain(value: Any) -> Any:
    """A number of numpy as Python's, which JSON takes."""
    return value.item() if isinstance(value, np.generic) else value
