"""Optic discs by a CSV file of the user's, beside those that are found.

    set,file,x,y,height,width,ok
    DRIVE,test/01_test.tif,88.5,258.3,86.9,74.3,1

`x` and `y` are the centre, `height` and `width` those of the disc, all in px of the photograph.
`ok` is 1 for a right row, 0 for one that is left out, none for a photograph without a disc.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segpipe.data.layouts import Example
from segpipe.data.survey import Look
from segpipe.errors import UserError, some_of
from segpipe.evaluate.bootstrap import Kept
from segpipe.measurement.disc import Disc, DiscPlace
from segpipe.metrics import ratio
from segpipe.storage import Store, named, read_uri

NUMBERS = ("x", "y", "height", "width")
COLUMNS = ("file", *NUMBERS, "ok")  # beside `set`, which may be missing
RIGHT, WRONG, NONE = "1", "0", "none"  # of `ok`
NEAR = 0.25  # disc diameters: a centre is right so far from the label's


@dataclass(frozen=True)
class DiscRow:
    """A row of the file."""

    line: int
    set: str
    """"": of any."""
    file: str
    """Of the photograph; folders before its name may leave out some of its own."""
    ok: str
    label: DiscPlace | None
    """Where `ok` is RIGHT, in px of the photograph."""

    def names(self, uri: str, set_names: Sequence[str]) -> bool:
        """Whether this is the photograph's row; `set_names`: what its set may be called, beside
        the folders that it is in."""
        *above, name = uri.split("/")
        *folders, file = filter(None, self.file.split("/"))
        if self.set and self.set not in set_names:
            folders = [self.set, *folders]
        left = iter(above)
        return file == name and all(folder in left for folder in folders)


def read_discs(uri: str, anonymous: bool = False) -> list[DiscRow]:
    """The file's rows. Raises UserError for what is no such file."""
    with named("--discs"):
        data = read_uri(uri, anonymous)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        if lacking := [name for name in COLUMNS if name not in names]:
            raise UserError(
                f"--discs {uri}: has the columns {some_of(names) or 'of an empty file'}, wanted "
                f"{', '.join(COLUMNS)}; add {', '.join(lacking)}"
            )
        if twice := [name for name in ("set", *COLUMNS) if names.count(name) > 1]:
            raise UserError(f"--discs {uri}: has the column {twice[0]} twice, leave one")
        reader.fieldnames = names
        rows = []
        for row in reader:
            if more := row.pop(None, None):
                raise UserError(
                    f"--discs {uri}: line {reader.line_num}: has {len(names) + len(more)} values, "
                    f"wanted {len(names)}, as there are columns; numbers have a point"
                )
            rows.append((reader.line_num, {name: row[name] or "" for name in names}))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--discs {uri}: cannot be read as CSV ({error}), save it as CSV in UTF-8"
        ) from error
    return [_row(uri, line, row) for line, row in rows]


def _row(uri: str, line: int, row: dict[str, str]) -> DiscRow:
    values = {name: value.strip() for name, value in row.items()}
    ok, place = values["ok"], f"{uri}: line {line}"
    if ok not in (RIGHT, WRONG, NONE):
        raise UserError(
            f'--discs {place}: ok is "{ok}", wanted {RIGHT} (right), {WRONG} (left out) or '
            f"{NONE} (no disc)"
        )
    if not values["file"].strip("/"):
        raise UserError(f"--discs {place}: names no file, give that of the photograph")
    numbers = {}
    for name in NUMBERS if ok == RIGHT else ():
        try:
            numbers[name] = float(values[name])
        except ValueError:
            numbers[name] = math.nan
        least = 0 if name in ("height", "width") else -math.inf
        if not least < numbers[name] < math.inf:
            raise UserError(
                f'--discs {place}: {name} is "{values[name]}", wanted a number of px'
                f"{' above 0' if least == 0 else ''}; correct it, or set ok to {WRONG}"
            )
    label = DiscPlace(**numbers) if numbers else None
    return DiscRow(line, values.get("set", ""), values["file"], ok, label)


def discs_of(
    rows: Sequence[DiscRow], uri: str, store: Store, examples: Sequence[Example], *names: str
) -> dict[str, DiscRow]:
    """The row of each photograph of a set that has one, by its name; `names`: the set's own.

    Raises UserError where a row names several photographs, or several rows one.
    """
    of_file: dict[str, list[Example]] = {}
    for example in examples:
        of_file.setdefault(posixpath.basename(example.image), []).append(example)
    found: dict[str, DiscRow] = {}
    for row in rows:
        alike = of_file.get(posixpath.basename(row.file), [])
        meant = [one for one in alike if row.names(store.uri(one.image), names)]
        if len(meant) > 1:
            raise UserError(
                f"--discs {uri}: line {row.line}: {row.file} may be {meant[0].image} and "
                f"{meant[1].image}, name its folders"
            )
        for example in meant:
            if example.name in found:
                raise UserError(
                    f"--discs {uri}: lines {found[example.name].line} and {row.line} are both of "
                    f"{example.image}, leave one"
                )
            found[example.name] = row
    return found


def check_places(discs: Mapping[str, DiscRow], uri: str, looks: Sequence[Look]) -> None:
    """Raise UserError where a disc of `discs_of` does not lie in its photograph."""
    for look in looks:
        row = discs.get(look.name)
        if row is None or row.label is None:
            continue
        inside = 0 <= row.label.x < look.width and 0 <= row.label.y < look.height
        if not inside or row.label.width > look.width or row.label.height > look.height:
            raise UserError(
                f"--discs {uri}: line {row.line}: the disc is not within {look.image}, which has "
                f"{look.width} x {look.height} px; give px of this photograph, or set ok to {WRONG}"
            )


def of_photograph(label: DiscPlace | None, disc: Disc | None) -> dict[str, Any]:
    """The label (None: no disc) and what was found, both in px of the photograph -> what
    metrics.json tells of it. Distances are in disc diameters of the label."""
    found = {"labelled": label is not None, "found": disc is not None}
    if label is None:
        return found
    if disc is None:
        return found | {"distance": math.nan, "diameter_error": math.nan}
    apart = math.hypot(disc.x - label.x, disc.y - label.y)
    return found | {
        "distance": apart / label.diameter,
        "diameter_error": abs(disc.diameter / label.diameter - 1),
    }


def near(photographs: Sequence[dict[str, Any]]) -> list[Kept]:
    """[2] of each that has a disc: 1 where the centre that is found is near the label's, and 1."""
    labelled = (one for one in photographs if one["labelled"])
    return [np.array([one["distance"] <= NEAR, 1]) for one in labelled]


def share_near(num: Kept) -> dict[str, float]:
    """Of the sum of `near`."""
    return {"share_near": ratio(*num.tolist())}


def summary(photographs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is told of all together, from `of_photograph` of each."""
    num = sum(near(photographs), np.zeros(2, np.int64))
    found = [one for one in photographs if one["labelled"] and one["found"]]
    errors = [one["diameter_error"] for one in found]
    others = [one for one in photographs if not one["labelled"]]
    return {
        "num_labelled": int(num[1]),
        "num_near": int(num[0]),
        **share_near(num),
        "median_diameter_error": float(np.median(errors)) if errors else math.nan,
        "num_without": len(others),
        "num_said_none": sum(not one["found"] for one in others),
    }
