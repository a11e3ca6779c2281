"""What a row holds: its columns, with type and meaning, and how older rows are read.

COLUMNS is the one list of them; docs/columns.md shows it, which tests/test_rows.py checks. A column
is added by a line here and a value of its name in the rows that stages make; rows written before it
have null. Those of a list come behind `id`, when parts become results. Delta and Iceberg take the
files as they are: they know no unsigned integers, times in microseconds alone, and would read
columns by the numbers (field ids) that a file gives them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segpipe.segment.columns import BYTES, REAL, TEXT, YES_NO, Column, structure_columns

SCHEMA_VERSION = "2"  # it changes when a column changes its meaning or type, or goes
TIME = pa.timestamp("us", tz="UTC")
MICROSECONDS = 1_000_000  # in a second
HART = "total squared curvature: Hart et al. 1999, International Journal of Medical Informatics 53"
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")  # of Markdown


FIRST_COLUMNS = (
    Column(
        "id",
        TEXT,
        "of a list with a column `id`: its value there, of the first row that names the file; "
        "else null",
        peers="VascX `id`: of its list too, which has `id` and `path`",
    ),
    Column(
        "path",
        TEXT,
        "key relative to `--input`; for lists `bucket/key` or the absolute path",
        peers="AutoMorph `Name`: the file's name without its folder",
    ),
    Column("mask_path", TEXT, "key of the mask relative to `--output`; null without a file"),
    Column("bytes", pa.int64(), "size of the input", "bytes"),
    Column(
        "version",
        TEXT,
        "its etag; on disks, and in stores without etags, size and time of its last change",
    ),
    Column("status", TEXT, "`ok` or `rejected`"),
    Column("error", TEXT, "why it was rejected, else null"),
    Column(
        "error_code",
        TEXT,
        "a code for that reason, see [Rejections](results.md#rejections), else null",
    ),
    Column(
        "note",
        TEXT,
        "what to know about the input, such as `first of 3 pages`, several joined by `; `, else "
        "null",
    ),
    Column("height", pa.int32(), "px, of input and mask", "px"),
    Column("width", pa.int32(), "px, of input and mask", "px"),
    Column(
        "laterality",
        TEXT,
        "`R` right eye, `L` left, `B` both; null where nothing says it",
    ),
    Column(
        "laterality_source",
        TEXT,
        "what says so: the `file` (DICOM), or with `--structures all` its `name` (OD, OS, right, "
        "left, 01L), or where the `disc` lies; null where nothing does",
    ),
    Column(
        "pixel_spacing_mm",
        REAL,
        "of a DICOM file, see [DICOM](formats.md#dicom); null where it does not say",
        "mm",
    ),
    Column("device", TEXT, "of a DICOM file: manufacturer and model"),
    Column(
        "acquired",
        TEXT,
        "of a DICOM file: date and time of the acquisition, see [DICOM](formats.md#dicom)",
    ),
    Column("mask_png", BYTES, "the mask as a PNG file, with `--format parquet` or `both`"),
    Column("probability_path", TEXT, "key of the score's PNG; null without `--probabilities`"),
    Column("probability_png", BYTES, "the score as a PNG file, with `--format parquet` or `both`"),
    Column("overlay_path", TEXT, "key of the overlay, a JPEG; null without `--overlays`"),
    Column("fov_fraction", REAL, "field of view / image"),
    Column(
        "fov_uncertain_fraction",
        REAL,
        "what is left out of the field of view and may be retina / image; null without a mask, and "
        "in rows of releases before 0.2",
    ),
    Column(
        "second_fov_fraction",
        REAL,
        "other fields of view, which are left out / image; null without a mask, and in rows of "
        "releases before 0.2",
    ),
    Column(
        "vessel_density",
        REAL,
        "vessel / field of view",
        peers="AutoMorph `Vessel_density`: vessel / the whole square picture. VascX `vd_*`: vessel "
        "/ a region that disc and fovea set, within the field of view; none where less than half "
        "of it is in frame",
    ),
    # from here to readable_fraction null without --measure full; see segpipe.measurement
    Column("measure_note", TEXT, "why something is NaN, such as `no vessel`, else null"),
    Column(
        "field_diameter_px", REAL, "larger extent of the field of view, px of the photograph", "px"
    ),
    Column(
        "length_density_per_px",
        REAL,
        "length of vessels' centre lines / field's area, 1/px",
        "1/px",
        "thinning: Guo and Hall 1989, Communications of the ACM 32, algorithm A1",
    ),
    Column(
        "length_density",
        REAL,
        "length of vessels' centre lines / field's area, per field diameter",
        "1/diameter",
        "thinning: Guo and Hall 1989, Communications of the ACM 32, algorithm A1",
    ),
    Column(
        "calibre_mean_px",
        REAL,
        "mean width of the vessels along their centre lines, px",
        "px",
        peers="AutoMorph `Average_width`: pixels of vessel / pixels of skeleton, times a "
        "resolution that is given. VascX `*diam_*`: each segment's median width, of which the "
        "median or the mean by length is taken; px of its own square crop, or mm",
    ),
    Column(
        "calibre_mean",
        REAL,
        "mean width of the vessels along their centre lines, in field diameters",
        "diameters",
    ),
    Column(
        "calibre_std_px", REAL, "standard deviation of the vessels' width along the lines, px", "px"
    ),
    Column(
        "calibre_std",
        REAL,
        "standard deviation of the vessels' width along the lines, in field diameters",
        "diameters",
    ),
    Column(
        "fractal_dimension",
        REAL,
        "by box counting, 0 to 2",
        "",
        "box counting; the correction for ends is segpipe's",
        "AutoMorph `Fractal_dimension`: plain slope over sides of 4, 8, 16, ... px, boxes that are "
        "full not counted",
    ),
    Column(
        "tortuosity",
        REAL,
        "length of vessels' segments / distance of their ends, from 1",
        "",
        "arc over chord: Hart et al. 1999, International Journal of Medical Informatics 53",
        "AutoMorph `Distance_tortuosity`: mean of arc / chord, short vessels counting as much as "
        "long ones, along pixels in flood-fill order (its issue 19), so that it changes as the "
        "picture turns. VascX `*tort_dist_*`: arc of a spline / chord of each segment, of which "
        "the median or the mean by length is taken",
    ),
    Column(
        "total_squared_curvature_per_px",
        REAL,
        "integral of squared curvature along the vessels' centre lines, 1/px; 0 is straight",
        "1/px",
        HART,
    ),
    Column(
        "total_squared_curvature",
        REAL,
        "integral of squared curvature along the vessels' centre lines, per field diameter",
        "1/diameter",
        HART,
    ),
    Column(
        "mean_squared_curvature_per_px2",
        REAL,
        "mean of squared curvature along the vessels' centre lines, 1/px^2",
        "1/px^2",
        HART,
    ),
    Column(
        "mean_squared_curvature",
        REAL,
        "mean of squared curvature along the vessels' centre lines, per squared field diameter",
        "1/diameter^2",
        HART,
    ),
    Column(
        "branch_angle_mean_deg",
        REAL,
        "mean angle between the two daughters at branch points of three, degrees; no value without",
        "degrees",
    ),
    Column("num_branch_points", pa.int32(), "places where three or more vessels meet"),
    Column("num_components", pa.int32(), "vessels that are not joined"),
    Column(
        "focus",
        REAL,
        "fine / coarser structure in green, 0 and more",
        "",
        "differences of Gaussians: Burt and Adelson 1983, IEEE Transactions on Communications 31",
    ),
    Column("exposure", REAL, "mean of green in the field, 0 to 1"),
    Column("underexposed_fraction", REAL, "share of the field with green below 16 of 255"),
    Column("overexposed_fraction", REAL, "share of the field with green from 250 of 255"),
    Column("readable_fraction", REAL, "share with light and contrast for vessels, 0 to 1"),
    Column(
        "quality",
        REAL,
        "how far the mask can be trusted, 0 to 1: the vessel Dice to expect, and near 0 where no "
        "retina is seen; see [Quality](results.md#quality); null without `--measure full` and "
        "`--min-quality`, and in rows of releases before 0.2",
    ),
    Column(
        "ungradable",
        YES_NO,
        "whether `quality` is below `--min-quality`; null without it, and without a mask",
    ),
)
LAST_COLUMNS = (
    Column("model", TEXT, "network"),
    Column("checkpoint_sha256", TEXT, "of the checkpoint file"),
    Column("threshold", REAL, "of the score, from the checkpoint"),
    Column(
        "settings",
        TEXT,
        "hash of all that the mask depends on; for the engine, of the one that the output was "
        "started with",
    ),
    Column(
        "engine",
        TEXT,
        "the engine that made this mask, such as `native fp32`; null without a mask, and in rows "
        "of releases before 0.2",
    ),
    Column("finished", TIME, "when; a double, seconds since 1970, in schema version 1"),
)
COLUMNS = (*FIRST_COLUMNS, *structure_columns(FIRST_COLUMNS), *LAST_COLUMNS)
ROW = pa.schema(
    [(column.name, column.type) for column in COLUMNS], metadata={"segpipe_schema": SCHEMA_VERSION}
)


def with_columns(listed: pa.Schema) -> pa.Schema:
    """The schema of results that have these columns of a list too, behind `id`."""
    first, *others = ROW
    return pa.schema([first, *listed, *others], metadata=ROW.metadata)


def without_pictures(schema: pa.Schema) -> pa.Schema:
    """What of these columns a table has room for."""
    return pa.schema([field for field in schema if field.type != BYTES])


def described(listed: pa.Schema) -> dict[str, Any]:
    """What columns.json says of the columns, and of these of a list."""
    first, *others = COLUMNS
    of_list = [Column(field.name, field.type, "of the list") for field in listed]
    columns = [
        {
            "name": column.name,
            "type": str(column.type),
            "unit": column.unit,
            "definition": LINK.sub(r"\1", column.meaning),
            "source": column.source,
            "peers": column.peers,
        }
        for column in (first, *of_list, *others)
    ]
    return {"schema_version": SCHEMA_VERSION, "columns": columns}


def schema_of(names: Sequence[str]) -> pa.Schema:
    """The schema of these columns."""
    return pa.schema([ROW.field(name) for name in names])


def conform(table: pa.Table, schema: pa.Schema = ROW) -> pa.Table:
    """Rows that any release wrote, with these columns in their order and types of today.

    Those that a release did not write are null. Raises pa.ArrowException where a column holds what
    its type cannot.
    """
    if table.schema.equals(schema):  # as nearly all are: a cast takes as long as reading them
        return table
    there = set(table.column_names)
    columns = [
        _cast(table[field.name], field.type)
        if field.name in there
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if wanted == TIME and pa.types.is_floating(column.type):  # of schema version 1
        column = pc.round(pc.multiply(column, float(MICROSECONDS))).cast(pa.int64())
    return column.cast(wanted)


def posix_seconds(times: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """`finished` of rows [N] as seconds since 1970 [M]; nulls are left out."""
    return np.asarray(pc.drop_null(times).cast(pa.int64()).to_numpy() / MICROSECONDS, np.float64)
