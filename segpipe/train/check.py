"""Check: look at a labelled set before anything is trained on it, without Ray or torch."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from segpipe.data import survey
from segpipe.data.classes import VESSEL
from segpipe.data.datasets import Labelled
from segpipe.data.globs import Reading
from segpipe.data.known_sets import SPLITS
from segpipe.data.layouts import Example, open_labelled
from segpipe.data.several import set_names, sources
from segpipe.data.survey import Look, Problem
from segpipe.errors import UserError
from segpipe.flags import check_anonymous
from segpipe.storage import Store, check_places, check_there, named, open_store, preflight
from segpipe.storage.places import refuse_inside

logger = logging.getLogger(__name__)

SHEET = 20  # photographs on a contact sheet
COLUMNS = 4
CELL_PX = 480  # longer side of a photograph there
CAPTION_PX = 36  # below it, for two lines
OUTLINE, RIGHT, WRONG = (255, 255, 0), (140, 255, 140), (255, 100, 100)


@dataclass(frozen=True)
class CheckConfig:
    """Look at every photograph and label of a set, and say what cannot be right."""

    data: str
    """Labelled set: a folder or s3://bucket/prefix in a layout that docs/training-data.md names."""
    output: str | None = None
    """Folder or s3://bucket/prefix for check.json and contact sheets, with --sets a folder for
    each; without, none are written."""
    sets: tuple[str, ...] | None = None
    """Folders below --data that are a labelled set each, as train takes them."""
    anonymous: bool = False
    """Read --data without S3 credentials: a public bucket."""
    images: str | None = None
    """Glob of the photographs below --data, of a set in no known layout; with --labels."""
    labels: str | None = None
    """Glob of the labels below --data; a star stands for the same in both."""
    masks: str | None = None
    """Glob of the masks of the field of view below --data; without, fields are found."""
    av_colours: str | None = None
    """What the colours of labels mean: RITE, LES-AV, DRIVE_AV or HRF, or MEANING=RRGGBB,... of
    artery, vein, crossing, uncertain and vessel; without, as the layout says. All are vessels."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_places(self, "data", "output")
        check_anonymous(self.anonymous, "--data", [self.data])
        Reading.of(self)
        set_names(self)


@dataclass(frozen=True)
class Checked:
    """A labelled photograph that was looked at."""

    split: str
    example: Example
    look: Look | None
    """None where a file cannot be used."""
    problem: Problem | None
    cell: Image.Image | None
    """On the contact sheet, where there is to be one."""


def check(config: CheckConfig) -> int:
    """Print what a set holds and what is wrong with it -> 1 where anything is, else 0."""
    config.check()
    store = open_store(config.data, anonymous=config.anonymous)
    output = None if config.output is None else open_store(config.output)
    if output:
        preflight(store, output)
    else:
        with named("--data"):
            store.check_readable()
    check_there(store, "--data")
    names = set_names(config)
    stores = sources(store, names)
    if output:
        for one in stores:
            refuse_inside(one, output)
    with named("--sets") if names else nullcontext():
        opened = [_opened(one, Reading.of(config)) for one in stores]
    cv2.setNumThreads(1)  # the threads here take the cores
    wrong = 0
    for name, one, found in zip(names or [""], stores, opened, strict=True):
        if name:
            print(f"{'set':<9} {name}")
        wrong |= _check_set(one, found, output, name)
    return wrong


def _check_set(store: Store, opened: Opened, output: Store | None, folder: str) -> int:
    """Print what a set holds, and write it to a folder of the output -> 1 or 0, as of check."""
    layout, examples, faults, notes = opened
    checked, num_sheets = list[Checked](), 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(examples), SHEET):
            some = examples[start : start + SHEET]
            page = list(pool.map(partial(_checked, store, with_cell=output is not None), some))
            if output:
                num_sheets += 1
                sheet = posixpath.join(folder, f"contact-{num_sheets:02d}.png")
                output.put(sheet, _sheet(page))
            checked += [replace(one, cell=None) for one in page]
            if len(checked) < len(examples):
                logger.info("check: %d/%d photographs", len(checked), len(examples))
    faults += survey.problem_lines(store.uri, [one.problem for one in checked])
    print("\n".join(_told(layout, checked, faults, notes)))
    if output:
        key = posixpath.join(folder, "check.json")
        output.put(key, _json(store, layout, checked, faults))
        sheets = "contact-01.png" + (", ..." if num_sheets > 1 else "")
        print(f"check: wrote {output.uri(key)} and {sheets}")
    return 1 if faults else 0


Opened = tuple[str, list[tuple[str, Example]], list[str], list[str]]


def _opened(store: Store, reading: Reading) -> Opened:
    """-> layout, the examples by split, why a split cannot be used, and what is to be noted.

    Raises UserError where the set has no known layout, or no split can be used.
    """
    layout, examples = "", list[tuple[str, Example]]()
    faults, notes = list[str](), dict[str, None]()
    for split in SPLITS:
        try:
            found = open_labelled(store, [split], reading)
        except UserError as error:
            faults.append(str(error))
            continue
        layout = found.layout
        notes |= dict.fromkeys(found.notes)
        name = split if found.split else "all"
        examples += [(name, one) for one in (*found.training, *found.test)]
        if not found.split:
            break
    if not examples:
        if faults:
            raise UserError(faults[0])
        line = "; ".join(notes) or "no images"
        raise UserError(f"{store.uri()}: {line} (the layout is {layout}), check the path")
    return layout, examples, faults, list(notes)


def _checked(store: Store, place: tuple[str, Example], with_cell: bool) -> Checked:
    split, example = place
    try:
        look, labelled = survey.look(store, example, with_second=True)
    except UserError as error:
        return Checked(split, example, None, _unusable(store, example, str(error)), None)
    return Checked(split, example, look, look.problem, _cell(labelled) if with_cell else None)


def _unusable(store: Store, example: Example, error: str) -> Problem:
    """What an error that names its file says, so that many files of one fault become one line."""
    keys = example.image, example.label, example.mask, example.second
    key = next((key for key in keys if key and error.startswith(f"{store.uri(key)}: ")), "")
    text = error.removeprefix(f"{store.uri(key)}: ")
    return Problem(text, key or example.image, text)


# ---- what is told


def _told(
    layout: str, checked: Sequence[Checked], faults: Sequence[str], notes: Sequence[str]
) -> Iterator[str]:
    yield f"{'layout':<9} {layout}"
    for split in dict.fromkeys(one.split for one in checked):
        some = [one for one in checked if one.split == split]
        yield f"{split:<9} {_told_of_split(some)}"
    for line in (*notes, *survey.notes([one.look for one in checked if one.look])):
        yield f"{'note':<9} {line}"
    for line in faults:
        yield f"{'problem':<9} {line}"
    if not faults:
        yield "check: nothing is wrong with this set"


def _told_of_split(checked: Sequence[Checked]) -> str:
    looks = [one.look for one in checked if one.look]
    words = [f"{len(checked)} photographs"]
    if looks:
        sizes = dict.fromkeys(f"{one.width}x{one.height}" for one in looks)
        words.append(f"{next(iter(sizes))} px" if len(sizes) == 1 else f"{len(sizes)} sizes")
        shares = [100 * one.vessel_share for one in looks]
        words.append(f"vessels {survey.span(shares, '.0f')} % of the field")
    if contrasts := [one.contrast for one in looks if not math.isnan(one.contrast)]:
        words.append(f"contrast {survey.span(contrasts, '.2f')}")
    num_masks = sum(one.example.mask is not None for one in checked)
    words.append("with masks" if num_masks else "fields are found")
    if num_seconds := sum(one.example.second is not None for one in checked):
        words.append(f"{num_seconds} by a second observer")
    return ", ".join(words)


def _json(store: Store, layout: str, checked: Sequence[Checked], faults: Sequence[str]) -> bytes:
    def row(one: Checked) -> dict[str, Any]:
        seen = asdict(one.look) if one.look else {}
        for name in ("problem", "digests", "name", "image"):
            seen.pop(name, None)
        if seen and math.isnan(seen["contrast"]):
            seen["contrast"] = None
        problem = one.problem.text if one.problem else None
        keys = asdict(one.example).items()
        files = {"manual" if name == "label" else name: key for name, key in keys}  # as in 0.1.0
        return {"split": one.split, **files, **seen, "problem": problem}

    value = {
        "data": store.uri(),
        "layout": layout,
        "problems": list(faults),
        "photographs": [row(one) for one in checked],
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()


# ---- contact sheets


def _cell(labelled: Labelled) -> Image.Image:
    """The photograph with its label outlined."""
    height, width = labelled.fov.shape
    scale = CELL_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photograph = np.asarray(Image.fromarray(labelled.image).resize(size, Image.Resampling.BOX))
    vessel = (labelled.label == VESSEL).view(np.uint8) * np.uint8(255)
    drawn = cv2.resize(vessel, size, interpolation=cv2.INTER_AREA) > 50  # thin ones stay
    outline = cv2.dilate(drawn.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool) & ~drawn
    picture = photograph.copy()
    picture[outline] = OUTLINE
    return Image.fromarray(picture)


def _sheet(page: Sequence[Checked]) -> bytes:
    """PNG of up to SHEET photographs, in rows of COLUMNS."""
    rows = -(-len(page) // COLUMNS)
    cell_height = CELL_PX + CAPTION_PX
    sheet = Image.new("RGB", (COLUMNS * CELL_PX, rows * cell_height))
    pen = ImageDraw.Draw(sheet)
    for place, one in enumerate(page):
        left, top = place % COLUMNS * CELL_PX, place // COLUMNS * cell_height
        if one.cell:
            sheet.paste(one.cell, (left, top))
        below = top + (one.cell.height if one.cell else 0)
        seen = (
            f"{one.look.vessel_share:.1%} vessels, contrast {one.look.contrast:.2f}"
            if one.look
            else "cannot be used"
        )
        more = f": {one.problem.kind}" if one.problem and one.look else ""
        colour = WRONG if one.problem else RIGHT
        pen.text((left + 4, below + 3), f"{one.split} {one.example.name}", colour)
        pen.text((left + 4, below + 18), seen + more, colour)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
