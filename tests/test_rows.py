"""The rows of results/: as documented, in every reader, and from what older releases wrote.

The readers' lines are those of docs/results.md, run as they stand there. Two readers are of the
extra `tables`, which `make test-nightly` installs. Run: pytest tests/test_rows.py
"""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segpipe.data import codecs
from segpipe.errors import UserError
from segpipe.segment import rows
from segpipe.segment.compact import compact, delete_old_results, result_groups
from segpipe.segment.manifest import list_inputs
from segpipe.segment.output import PARTS, SUMMARY
from segpipe.segment.parts import commit_part
from segpipe.segment.rows import COLUMNS, ROW
from segpipe.storage import Entry, Store, open_store
from segpipe.storage.files import read_parquet, write_json, write_parquet

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "results.md").read_text()
UNTIL_V2 = [  # as 0.1.0 wrote them, with those columns that these tests look at
    ("path", pa.string()),
    ("mask_path", pa.string()),
    ("bytes", pa.int64()),
    ("version", pa.string()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("mask_png", pa.binary()),
    ("vessel_density", pa.float32()),
    ("finished", pa.float64()),
]
WHEN = datetime(2026, 11, 29, 4, 5, 6, 789012, tzinfo=UTC)
WHEN_S = 1795925106.789012  # by date -u -d '2026-11-29 04:05:06.789012' +%s.%6N
CLASSES = np.zeros((20, 24), np.uint8)
CLASSES[2:18, 2:20], CLASSES[5:8, 4:18] = 2, 1


def row(path: str, **more: Any) -> dict[str, Any]:
    fixed = {"version": "1", "status": "ok", "bytes": 3_000_000_000, "height": 20, "width": 24}
    return {"path": path, "finished": WHEN} | fixed | more


def with_mask(path: str) -> dict[str, Any]:
    mask = codecs.encode_mask(CLASSES)
    return row(path, mask_png=mask, fov_fraction=0.6, vessel_density=0.145833, num_components=1)


def rejected(path: str) -> dict[str, Any]:
    why = {"status": "rejected", "error": "the file has no bytes", "error_code": "empty_file"}
    return row(path, height=None, width=None) | why


def finish(output: Store, *names: str) -> list[str]:
    """The end of a run over these inputs, which are done -> the keys of the results."""
    summary = compact(output, list_inputs(Entry(n, 1, "1") for n in names))
    delete_old_results(output, summary["results"])
    write_json(output, SUMMARY, summary)
    return summary["results"]


def write_part(output: Store, table: pa.Table, number: int = 0) -> None:
    write_parquet(output, f"{PARTS}{number:032x}.parquet", table)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """As docs/results.md calls it."""
    return open_store(str(tmp_path / "runs/masks"))


# ---- what is documented


def test_the_page_shows_each_column_with_its_type_and_meaning():
    _, _, behind = (DOCS / "columns.md").read_text().partition("|---|---|---|---|---|---|\n")
    table = behind.partition("\n\n")[0].splitlines()
    assert table == [f"| `{one.name}` | {' | '.join(map(str, order(one)))} |" for one in COLUMNS]
    assert f"Schema version {rows.SCHEMA_VERSION}," in PAGE
    assert ROW.metadata == {b"segpipe_schema": rows.SCHEMA_VERSION.encode()}


def test_densities_of_zones_are_per_area_of_their_zone():
    told = {one.name: one.meaning for one in COLUMNS if one.name.endswith("length_density")}
    assert "/ field's area" in told["artery_length_density"]
    zones = [meaning for name, meaning in told.items() if name.startswith("zone_")]
    assert len(zones) == 6
    assert all("/ zone's area within the field, per field diameter" in one for one in zones)


def order(column: rows.Column) -> tuple[Any, ...]:
    """As the page has them, behind the name."""
    return column.type, column.unit, column.meaning, column.source, column.peers


def test_the_page_has_the_names_that_people_know():
    """Columns of the files that AutoMorph (its retipy scripts) and VascX (its README) write."""
    known = {
        "fractal_dimension": ["Fractal_dimension"],
        "vessel_density": ["Vessel_density", "vd_*"],
        "calibre_mean_px": ["Average_width", "*diam_*"],
        "tortuosity": ["Distance_tortuosity", "*tort_dist_*"],
        "path": ["Name"],
        "id": ["id"],
        "crae_px": ["CRAE_Knudtson"],
        "crve_px": ["CRVE_Knudtson"],
        "avr": ["AVR_Knudtson"],
    }
    told = {one.name: re.findall(r"(?:AutoMorph|VascX) `([^`]*)`:", one.peers) for one in COLUMNS}
    assert {name: names for name, names in told.items() if names} == known


def test_the_rows_are_in_csv_as_other_readers_take_it(output):
    odd = 'a "b", c;\té\nd'
    rows = [row("a", note=odd, tortuosity=float("nan"), calibre_mean=0.1), rejected("=b")]
    commit_part(output, [one | {"mask_png": b"\x00"} for one in rows])
    inputs = list_inputs(Entry(name, 1, "1") for name in ("a", "=b"))
    summary = compact(output, inputs, "both")
    [key] = summary["tables"]
    found = list(csv.DictReader(io.StringIO(output.get(key).decode(), newline="")))
    names = [one.name for one in COLUMNS if one.type != pa.binary()]
    assert list(found[0]) == names
    [whole] = summary["results"]
    for said, held in zip(found, read_parquet(output, whole).to_pylist(), strict=True):
        for name in names:
            assert said[name] == as_text(held[name])
    assert [one["note"] for one in found if one["path"] == "a"] == [odd]


def as_text(value: object) -> str:
    if isinstance(value, float):  # of 32 bits, by the fewest digits that tell it from others
        return str(np.float32(value))
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%fZ")
    return "" if value is None else str(value)


def test_what_columns_hold_is_written_beside_them(output):
    commit_part(output, [row("a")])
    finish(output, "a")
    told = json.loads(output.get("columns.json"))["columns"]
    assert [one["name"] for one in told] == ROW.names
    [calibre] = [one for one in told if one["name"] == "calibre_mean_px"]
    assert (calibre["unit"], calibre["type"]) == ("px", "float")
    for one in told:  # whoever reads it has nothing else at hand
        assert one["definition"]
        assert "the same" not in one["definition"]
        assert "](" not in "".join(map(str, one.values()))
        assert one["name"].endswith("_px") <= one["unit"].endswith("px")


def test_delta_and_iceberg_know_every_type():
    """What both specifications have as primitive types: no unsigned integers, no other times."""
    signed = {pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.date32()}
    assert {one.type for one in COLUMNS} <= signed | {
        pa.string(),
        pa.binary(),
        pa.timestamp("us", tz="UTC"),
    }


def test_a_file_of_results_holds_no_field_ids_and_nothing_of_pandas(output):
    """Not even where a part of them does, as one that pandas or Iceberg wrote."""
    numbered = pa.schema(
        [field.with_metadata({"PARQUET:field_id": f"{n + 7}"}) for n, field in enumerate(ROW)],
        metadata={"pandas": json.dumps({"columns": []})},
    )
    write_part(output, pa.Table.from_pylist([row("a")], schema=numbered))
    [key] = finish(output, "a")
    file = pq.ParquetFile(io.BytesIO(output.get(key)))
    assert set(file.metadata.metadata) == {b"ARROW:schema", b"segpipe_schema"}
    assert "field_id=7" not in str(file.metadata.schema)
    assert str(file.metadata.schema).count("field_id=-1") == len(COLUMNS) + 1  # and the root


# ---- what older releases wrote


def test_rows_of_0_1_0_come_out_in_the_types_of_today(output):
    mask = codecs.encode_mask(CLASSES)
    old = row("a", mask_path="masks/a.png", mask_png=mask, vessel_density=0.125, finished=WHEN_S)
    table = pa.Table.from_pylist([old, old | {"path": "b", "finished": None}], pa.schema(UNTIL_V2))
    write_part(output, table)
    commit_part(output, [row("c")])
    [key] = finish(output, "a", "b", "c")
    found = pq.read_table(io.BytesIO(output.get(key)))
    assert found.schema.equals(ROW, check_metadata=True)
    first, second, new = found.to_pylist()
    assert first["finished"] == new["finished"] == WHEN
    assert second["finished"] is None
    kept = [name for name, _ in UNTIL_V2 if name != "finished"]
    assert {name: first[name] for name in kept} == {name: old.get(name) for name in kept}
    assert first["engine"] is None


def test_unsigned_integers_of_a_part_become_signed_ones(output):
    fields = [field for field in ROW if field.name not in ("bytes", "height")]
    unsigned = pa.schema([*fields, ("height", pa.uint16()), ("bytes", pa.uint64())])
    write_part(output, pa.Table.from_pylist([row("a", height=65535)], schema=unsigned))
    [key] = finish(output, "a")
    found = read_parquet(output, key)
    assert found.schema == ROW
    assert [(one["height"], one["bytes"]) for one in found.to_pylist()] == [(65535, 3_000_000_000)]


@pytest.mark.parametrize("old_is_newer", [False, True])
def test_of_an_old_and_a_new_rejection_the_newer_counts(output, old_is_newer):
    why = {"status": "rejected", "error": "old"}
    old = row("a", finished=WHEN_S + (1 if old_is_newer else -1)) | why
    write_part(output, pa.Table.from_pylist([old], schema=pa.schema(UNTIL_V2)))
    commit_part(output, [row("a") | why | {"error": "new"}, row("b")])
    [key] = finish(output, "a", "b")
    told = read_parquet(output, key)["error"].to_pylist()
    assert told == ["old" if old_is_newer else "new", None]


def test_results_of_0_1_0_are_read_in_the_types_of_today(output):
    """As for the report of a run that ended."""
    old = pa.Table.from_pylist([row("a", finished=WHEN_S)], schema=pa.schema(UNTIL_V2))
    write_parquet(output, "results/part-00000.parquet", old)
    [read] = result_groups(output, {})
    table = read(["path", "finished", "engine"])
    assert table.to_pylist() == [{"path": "a", "finished": WHEN, "engine": None}]
    assert rows.posix_seconds(table["finished"]) == pytest.approx([WHEN_S], abs=1e-6)


@pytest.mark.parametrize("name", ["finished", "height"])
def test_a_part_whose_column_holds_something_else_is_named(output, name):
    other = ROW.set(ROW.get_field_index(name), pa.field(name, pa.string()))
    write_part(output, pa.Table.from_pylist([row("a") | {name: "tall"}], schema=other))
    with pytest.raises(UserError, match=f"{0:032x}.parquet: damaged, delete it and run the same"):
        finish(output, "a")


# ---- readers

READERS: dict[str, tuple[str, Callable[[Any], pa.Table]]] = {  # module, how rows become Arrow's
    "pandas": ("pandas", lambda frame: pa.Table.from_pandas(frame, preserve_index=False)),
    "polars": ("polars", lambda frame: frame.collect().to_arrow()),
    "DuckDB": ("duckdb", lambda relation: relation.to_arrow_table()),
    "Ray Data": ("ray", lambda dataset: pa.concat_tables(_blocks(dataset))),
    "Hugging Face datasets": ("datasets", lambda dataset: dataset.data.table),
    "Delta Lake": ("deltalake", lambda table: table.to_pyarrow_table()),
    "Apache Iceberg": ("pyiceberg", lambda table: table.scan().to_arrow()),
}
MARKS = {
    "Ray Data": pytest.mark.cluster,
    "Hugging Face datasets": pytest.mark.nightly,  # which installs what these two need:
    "Apache Iceberg": pytest.mark.nightly,  # twenty packages beside their own
}
OF_FILES = ("Delta Lake", "Apache Iceberg")  # their tables are lists of files
PICTURES = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # of Hugging Face's Image


def _blocks(dataset: Any) -> list[pa.Table]:
    import ray

    return [block for block in ray.get(dataset.to_arrow_refs()) if len(block)]


def lines(reader: str) -> str:
    """What the page tells of a reader."""
    section = PAGE.partition(f"### {reader}\n")[2]
    return section.partition("```python\n")[2].partition("```")[0]


def plain(kind: pa.DataType) -> pa.DataType:
    """Without what is a reader's own choice: how texts are held, and in which zone times are."""
    if pa.types.is_timestamp(kind):
        assert kind.tz
        return pa.timestamp(kind.unit, tz="UTC")
    same = {pa.large_string(): pa.string(), pa.string_view(): pa.string()}
    return (same | {pa.large_binary(): pa.binary(), pa.binary_view(): pa.binary()}).get(kind, kind)


def assert_rows(table: pa.Table, wanted: list[dict[str, Any]]) -> None:
    """Of the documented columns, types and values."""
    assert table.column_names == ROW.names
    for field in table.schema:
        if field.type != PICTURES:
            assert plain(field.type) == ROW.field(field.name).type, field.name
    found = {one["path"]: one for one in table.to_pylist()}
    assert len(table) == len(found) == len(wanted)
    for one in wanted:
        for name, value in one.items():
            told = found[one["path"]][name]
            told = told["bytes"] if isinstance(told, dict) else told
            assert told == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.fixture
def reader(request, tmp_path, monkeypatch) -> str:
    module, _ = READERS[request.param]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip(module, reason=f"{module} is missing: pip install 'segpipe[dev,tables]'")
    if module == "ray":
        request.getfixturevalue("ray_cluster")
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.mark.parametrize(
    "reader",
    [pytest.param(one, marks=MARKS.get(one, ())) for one in READERS],
    indirect=True,
)
def test_the_lines_of_the_page_show_all_rows_also_after_a_run_that_adds_some(reader, output):
    to_arrow = READERS[reader][1]
    first, second = [with_mask("a.jpg"), rejected("b.jpg")], [with_mask("c.jpg")]
    commit_part(output, first)
    finish(output, "a.jpg", "b.jpg")
    before: dict[str, Any] = {}
    exec(lines(reader), before)
    assert_rows(to_arrow(before["rows"]), first)
    commit_part(output, second)
    finish(output, "a.jpg", "b.jpg", "c.jpg")
    if reader in OF_FILES:
        with pytest.raises(FileNotFoundError):
            to_arrow(before["rows"])
    for _ in range(2):  # again after a run that changed nothing
        after: dict[str, Any] = {}
        exec(lines(reader), after)
        assert_rows(to_arrow(after["rows"]), first + second)
    if reader == "Hugging Face datasets":
        assert isinstance(after["mask"], Image.Image)
        assert after["mask"].mode == "P"
        assert np.array_equal(np.asarray(after["mask"]), CLASSES)
        assert after["rows"][1]["mask_png"] is None


def test_the_page_tells_of_each_reader():
    told = re.findall(r"^### (.*)$", PAGE.partition("## Reading the rows")[2], re.MULTILINE)
    assert [one for one in told if one in READERS] == list(READERS)
