"""What a column is, and those of arteries, veins, the optic disc and its zones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from segpipe.measurement.names import KINDS, OF_KIND, OF_ZONE, ZONES

TEXT, BYTES, REAL, YES_NO = pa.string(), pa.binary(), pa.float32(), pa.bool_()


class Column(NamedTuple):
    """Of the results. Any may be null but `path`, `version` and `status`."""

    name: str
    type: pa.DataType
    meaning: str
    """With its unit; px are those of the input. As docs/columns.md has it."""
    unit: str = ""
    """'' of what is counted, a share or no number; `diameters` are those of the field."""
    source: str = ""
    """Of the definition, where it was published."""
    peers: str = ""
    """What AutoMorph and VascX call it, and what differs there; '' where they have none."""


KNUDTSON = "Knudtson et al. 2003, Current Eye Research 27: revised formulas"
OF_DISC = (
    Column("arteries_veins_path", TEXT, "key of the picture of arteries and veins; null without"),
    Column("arteries_veins_png", BYTES, "that picture, with `--format parquet` or `both`"),
    Column(
        "disc",
        TEXT,
        "`found`, or `none` where no optic disc is; null without `--structures all`, as all "
        "columns from here to `zone_note`",
    ),
    Column(
        "disc_x_px", REAL, "the disc's centre, px from the left edge of the file's picture", "px"
    ),
    Column("disc_y_px", REAL, "the disc's centre, px from its upper edge", "px"),
    Column("disc_height_px", REAL, "the disc's vertical diameter, px", "px"),
    Column("disc_width_px", REAL, "the disc's horizontal diameter, px", "px"),
    Column("disc_confidence", REAL, "mean probability of its pixels, 0 to 1"),
    Column(
        "disc_right_of_middle",
        REAL,
        "from the middle of the field to the disc's centre, to the right, in field diameters",
        "diameters",
    ),
    Column(
        "disc_below_middle",
        REAL,
        "from the middle of the field to the disc's centre, downwards, in field diameters",
        "diameters",
    ),
    Column("structures_sha256", TEXT, "of the checkpoint that found arteries, veins and disc"),
)
CENTRAL = (
    Column(
        "crae_px",
        REAL,
        "central retinal arteriolar equivalent of the six largest arteries in zone B, px",
        "px",
        KNUDTSON,
        "AutoMorph `CRAE_Knudtson`: of six or fewer",
    ),
    Column(
        "crae_disc_diameters",
        REAL,
        "central retinal arteriolar equivalent of the six largest arteries in zone B, in disc "
        "diameters",
        "disc diameters",
        KNUDTSON,
    ),
    Column(
        "crve_px",
        REAL,
        "central retinal venular equivalent of the six largest veins in zone B, px",
        "px",
        KNUDTSON,
        "AutoMorph `CRVE_Knudtson`: of six or fewer",
    ),
    Column(
        "crve_disc_diameters",
        REAL,
        "central retinal venular equivalent of the six largest veins in zone B, in disc diameters",
        "disc diameters",
        KNUDTSON,
    ),
    Column(
        "avr",
        REAL,
        "arteries / veins: CRAE / CRVE",
        "",
        KNUDTSON,
        "AutoMorph `AVR_Knudtson`: of six or fewer",
    ),
    Column(
        "zone_note",
        TEXT,
        "why something of the zones is null, such as `no optic disc` or `B: 4 of 6 arteries`",
    ),
)


def structure_columns(of_all: Sequence[Column]) -> Iterator[Column]:
    """Those of arteries, veins, disc and zones, each defined as its like of all vessels."""
    like = {column.name: column for column in of_all}
    yield from OF_DISC
    for kind, many in KINDS.items():
        yield Column(f"{kind}_density", REAL, f"{many} / field of view; a crossing is of both")
        for name in OF_KIND[1:]:
            yield _like(like[name], kind, f"of {many} alone: {like[name].meaning}")
    for zone, (inner, outer) in ZONES.items():
        span = f"{inner:g} to {outer:g} disc diameter{'s' * (outer > 1)} from the disc's margin"
        words = f"zone {zone[-1].upper()} ({span})"
        for kind, many in {"vessel": "vessels", **KINDS}.items():
            of = f"{zone}_{kind}"
            yield Column(f"{of}_density", REAL, f"{many} / area, in {words}")
            for name in OF_ZONE[1:]:
                meaning = like[name].meaning.replace("field's area", "zone's area within the field")
                yield _like(like[name], of, f"of {many} in {words}: {meaning}")
    yield from CENTRAL


def _like(column: Column, prefix: str, meaning: str) -> Column:
    return column._replace(name=f"{prefix}_{column.name}", meaning=meaning, peers="")
