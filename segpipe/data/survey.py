"""The survey of a labelled set before anything learns from it or is measured by it.

Each photograph and its drawings are read once. What cannot be right is told in one line for each
kind, by its first file; what the set's files are is kept, so that a change is noticed later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from segpipe.data.arrays import Mask
from segpipe.data.classes import VESSEL
from segpipe.data.datasets import Labelled, drawing_of, load_example, load_second
from segpipe.data.drawings import SAME_PLACE, Drawing, contrast
from segpipe.data.fov import find_fov, fov_diameter
from segpipe.data.layouts import Example
from segpipe.errors import RejectedImage

if TYPE_CHECKING:
    from segpipe.storage import (
        Entry,
        Source,
    )  # its libraries stay out of processes that only decode

LEAST, MOST = 0.02, 0.35  # share of vessels in the field: 0.059 to 0.168 on DRIVE, STARE and HRF
SAME = 0.9  # intersection over union of a label and a field: one was taken for the other
SAME_FIELD = 0.5  # of the smaller of the given and the found field that both have
ALL, FRAMED = 0.99, 0.9  # shares of a picture: a mask of all of it, a field that leaves a frame
NOTED = 0.001  # share of grey in a label that is worth a line


@dataclass(frozen=True)
class Problem:
    """Why a photograph's drawings cannot be right."""

    kind: str
    key: str
    """Of the file that is told."""
    text: str


@dataclass(frozen=True)
class Look:
    """What was seen of a labelled photograph."""

    name: str
    image: str
    """Its key, which no other of the set has."""
    height: int
    width: int
    """px, as its label lies on it"""
    diameter: float
    """Of the field, px."""
    vessel_share: float
    """Vessels / field of view."""
    contrast: float
    """Of drawings.contrast; NaN where nothing is drawn."""
    grey: float
    """Share of grey among the label's pixels that are not black."""
    coloured: bool
    """Whether the label's colours were read, and not white on black."""
    orientation: int
    """EXIF's, of the photograph's file."""
    shown: bool
    """Whether the photograph was turned by it, as its label is drawn on what viewers show."""
    problem: Problem | None
    """The first that was found."""
    digests: Mapping[str, str]
    """SHA-256 of each file that was read, by key."""

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Look:
        values = json.loads(text)
        problem = values.pop("problem")
        return cls(**values, problem=problem and Problem(**problem))


class _Kept:
    """A source that remembers the bytes of what was read, so that nothing is fetched twice."""

    def __init__(self, source: Source) -> None:
        self.source, self.files = source, dict[str, bytes]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def get(self, key: str, version: str | None = None) -> bytes:
        if key not in self.files:
            self.files[key] = self.source.get(key, version)
        return self.files[key]


def look(
    store: Source, example: Example, find_field: bool = False, with_second: bool = False
) -> tuple[Look, Labelled]:
    """Read an example's files once and compare them -> what was seen, and the example.

    The set's mask is left out with `find_field`, the second observer's drawing is compared too
    `with_second`. Raises UserError that names the file that does not fit.
    """
    kept: Any = _Kept(store)
    mask = None if find_field else example.mask
    second = example.second if with_second else None
    labelled = load_example(kept, example, find_field)
    keys = [key for key in (example.label, mask, second) if key]
    drawings = {key: drawing_of(kept, example, key) for key in keys}
    odd = [Problem(one.problem, key, one.text) for key, one in drawings.items() if one.problem]
    share, found = _measured(labelled, labelled.label == VESSEL)
    label = drawings[example.label]
    problem = odd[0] if odd else _misfit(example, label, labelled, share, found)
    if second and problem is None:
        second_label = load_second(kept, example, labelled)
        assert second_label is not None
        measured = _measured(labelled, second_label == VESSEL)
        problem = _wrong_vessels(example, second, labelled.orientation, *measured)
    height, width = labelled.fov.shape
    seen = Look(
        name=example.name,
        image=example.image,
        height=height,
        width=width,
        diameter=fov_diameter(labelled.fov),
        vessel_share=share,
        contrast=found,
        grey=label.grey,
        coloured=label.coloured,
        orientation=labelled.orientation,
        shown=labelled.shown,
        problem=problem,
        digests={key: hashlib.sha256(data).hexdigest() for key, data in kept.files.items()},
    )
    return seen, labelled


def _measured(labelled: Labelled, vessel: Mask) -> tuple[float, float]:
    """-> share of the field, contrast."""
    share = float(vessel.sum() / labelled.fov.sum())
    return share, contrast(labelled.image, vessel, labelled.fov)


def _misfit(
    example: Example, label: Drawing, labelled: Labelled, share: float, found: float
) -> Problem | None:
    """What is wrong with a label of this share and contrast, or with its mask."""
    try:
        field = find_fov(labelled.image)
    except RejectedImage:
        field = labelled.fov
    overlaps = (_overlap(label.foreground, one) for one in (field, labelled.fov))
    if share > MOST and max(overlaps) > SAME:
        swapped = labelled.fov.sum() < MOST * label.foreground.sum()
        more = ", labels and masks are swapped" if swapped else ""
        return Problem("field", example.label, f"is the field of view, no vessels{more}")
    smaller = max(1, min(labelled.fov.sum(), field.sum()))
    if (inside := float((labelled.fov & field).sum() / smaller)) < SAME_FIELD:
        text = f"shares {inside:.0%} with the field of view that is found in {example.image}"
        return Problem("mask", example.mask or example.image, text)
    if labelled.fov.mean() > ALL and field.mean() < FRAMED:
        text = f"covers the whole picture, of which the field of view is {field.mean():.0%}"
        return Problem("mask", example.mask or example.image, text)
    return _wrong_vessels(example, example.label, labelled.orientation, share, found)


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def _wrong_vessels(
    example: Example, key: str, orientation: int, share: float, found: float
) -> Problem | None:
    """Whether vessels of this share and contrast, as drawn in `key`, can be the photograph's."""
    if not share:
        return Problem("empty", key, "no vessel is drawn in the field of view")
    if not LEAST <= share <= MOST:
        more = ", is black drawn on white?" if share > 0.5 else ""
        wanted = f"{100 * LEAST:g} to {100 * MOST:g} %"
        text = f"vessels are {100 * share:.1f} % of the field of view, wanted {wanted}{more}"
        return Problem("share", key, text)
    if found >= SAME_PLACE:
        return None
    if orientation != 1:
        text = (
            f"fits {example.image}, which EXIF turns (orientation {orientation}), neither as it is "
            "stored nor as it is shown: turn photograph and labels alike"
        )
        return Problem("exif", key, text)
    text = (
        "its vessels are no darker than what is beside them "
        f"(contrast {found:.2f}, wanted {SAME_PLACE} or more): does it belong to {example.image}?"
    )
    return Problem("contrast", key, text)


# ---- what is told of all looks


def problem_lines(uri: Callable[[str], str], problems: Iterable[Problem | None]) -> list[str]:
    """A line for each kind of problem, with its first file and how many more there are."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem:
            kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for first, *more in kinds.values():
        counted = f" (and {len(more)} more such)" if more else ""
        lines.append(f"{uri(first.key)}: {first.text}{counted}")
    return lines


def notes(looks: Sequence[Look]) -> list[str]:
    """What is worth a line, though nothing is wrong."""
    lines = []
    if grey := [one.grey for one in looks if one.grey > NOTED]:
        lines.append(
            f"labels with grey edges, which are cut in the middle: {len(grey)}, up to "
            f"{100 * max(grey):.1f} % of what is drawn"
        )
    if num_coloured := sum(one.coloured for one in looks):
        lines.append(
            "labels in artery and vein colours, each of which is a vessel here, uncertain ones "
            f"too: {num_coloured}"
        )
    if num_shown := sum(one.shown for one in looks):
        lines.append(
            "photographs turned as EXIF says, since their labels are drawn on what viewers show: "
            f"{num_shown}"
        )
    return lines


def overview(layout: str, *splits: Sequence[Look]) -> str:
    """In a line: how many photographs there are in each split, and how much vessel they have."""
    counts = " + ".join(str(len(looks)) for looks in splits if looks)
    shares = [100 * one.vessel_share for looks in splits for one in looks]
    return f"{counts} photographs ({layout}), vessels {span(shares, '.0f')} % of the field"


def span(values: Iterable[float], form: str) -> str:
    """From the least to the greatest of one or more values, each once, as "8-14"."""
    values = list(values)
    return "-".join(dict.fromkeys(f"{end:{form}}" for end in (min(values), max(values))))


# ---- whether the set is still the same


def listing(entries: Mapping[str, Entry], looks: Iterable[Look]) -> dict[str, str]:
    """Key -> "bytes version sha256" of every file that was read."""
    digests = {key: digest for one in looks for key, digest in one.digests.items()}
    return {
        key: f"{entries[key].bytes} {entries[key].version} {digest}"
        for key, digest in sorted(digests.items())
    }


def changes(store: Source, before: Mapping[str, str], now: Mapping[str, Entry]) -> str:
    """What is different from the `before` of `listing`, as "1 added, 3 changed"; else ''.

    One listing tells, mostly: a file of the same size whose version alone differs, as that of a
    copy whose time is its own, is read and compared by its digest.
    """

    def same(key: str) -> bool:
        size, version, digest = before[key].split(" ")
        if now[key].version == version:
            return True
        if str(now[key].bytes) != size:
            return False
        return hashlib.sha256(store.get(key)).hexdigest() == digest

    counts = {
        "added": len(now.keys() - before.keys()),
        "deleted": len(before.keys() - now.keys()),
        "changed": sum(not same(key) for key in now.keys() & before.keys()),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
