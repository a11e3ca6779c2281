"""A list's own columns in the rows: first, as they stand in the list of today.

Run: pytest tests/test_list_columns.py
"""

import csv
import datetime
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from verbs import ONE, run

from segpipe.errors import UserError
from segpipe.segment.compact import compact
from segpipe.segment.inputs import Inputs, open_source
from segpipe.segment.manifest import Manifest, list_inputs
from segpipe.segment.output import PARTS
from segpipe.segment.parts import commit_part
from segpipe.segment.rows import ROW
from segpipe.storage import Store, open_store
from segpipe.storage.files import read_parquet, write_parquet

OWN = ROW.names[1:]  # what stands behind a list's columns
DAY = datetime.date(2020, 2, 29)


@pytest.fixture
def output(tmp_path) -> Store:
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def listed(tmp_path):
    """A function: a list of this text, or table -> the manifest of the files that it names."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())

    def found(content: str | pa.Table, column: str = "path") -> Manifest:
        return list_inputs(Inputs(open_source(write(tmp_path, content), 1.0, column=column)))

    return found


def write(folder: Path, content: str | pa.Table) -> str:
    if isinstance(content, pa.Table):
        place = folder / "list.parquet"
        pq.write_table(content, place)
    else:
        place = folder / "list.csv"
        place.write_text(content)
    return str(place)


def commit(output: Store, manifest: Manifest) -> None:
    """All its inputs as done, in one part."""
    inputs = [one for n in range(len(manifest.pages)) for one in manifest.page(n).to_pylist()]
    same = {"status": "ok", "bytes": 5}
    commit_part(
        output, [{name: one[name] for name in ("path", "version")} | same for one in inputs]
    )


def finish(output: Store, manifest: Manifest) -> pa.Table:
    [key] = compact(output, manifest)["results"]
    return read_parquet(output, key)


def heads(table: pa.Table) -> list[dict]:
    """Of each row a list's own columns alone."""
    return table.drop_columns(OWN).to_pylist()


def test_columns_of_csv_are_text_and_stand_behind_the_id(listed, output):
    """The first row of a file counts; b.jpg has no value."""
    manifest = listed('age,path,id,eye\n060,a.jpg,7,"l\nr"\n,b.jpg,8,\n99,a.jpg,9,x\n')
    commit(output, manifest)
    table = finish(output, manifest)
    assert table.column_names == ["id", "age", "eye", *OWN]
    assert heads(table) == [
        {"id": "7", "age": "060", "eye": "l\nr"},
        {"id": "8", "age": "", "eye": ""},
    ]
    assert table["bytes"].to_pylist() == [5, 5]
    assert table.schema.metadata == ROW.metadata


def test_columns_of_parquet_keep_types_that_every_reader_knows(listed, output):
    kinds = {  # values, type of the list, type in the rows
        "visit": ([1, None], pa.uint8(), pa.int64()),
        "weight": ([60.5, None], pa.float64(), pa.float64()),
        "ratio": ([0.1, 0.2], pa.float32(), pa.float32()),
        "smoker": ([True, None], pa.bool_(), pa.bool_()),
        "born": ([DAY, None], pa.date32(), pa.date32()),
        "clinic": (["x", "y"], pa.dictionary(pa.int8(), pa.string()), pa.string()),
        "seen": ([datetime.datetime(2020, 2, 29, 1, 2), None], pa.timestamp("ms"), pa.string()),
        "large": ([2**64 - 1, 0], pa.uint64(), pa.string()),
        "empty": ([None, None], pa.null(), pa.string()),
    }
    columns = {name: pa.array(values, kind) for name, (values, kind, _) in kinds.items()}
    manifest = listed(pa.table({"path": ["b.jpg", "a.jpg"]} | columns))
    commit(output, manifest)
    table = finish(output, manifest)
    assert table.column_names == ["id", *kinds, *OWN]
    for name, (values, _, kind) in kinds.items():
        assert table.schema.field(name).type == kind
        if name not in ("seen", "large"):
            assert table[name].to_pylist() == pa.array(values, kind).to_pylist()
    assert table["large"].to_pylist() == ["18446744073709551615", "0"]
    assert table["seen"].to_pylist() == ["2020-02-29 01:02:00.000", None]


def test_columns_that_rows_cannot_have_are_left_out_in_a_note(tmp_path):
    nested = {"vectors": [[1.0, 2.0]], "thumbnail": [b"\xff"], "box": [{"x": 1}], "Note": ["b"]}
    place = write(tmp_path, pa.table({"path": ["a.jpg"]} | nested | {"age": [60]}))
    inputs = Inputs(open_source(place, 1.0))
    assert list_inputs(inputs).columns.names == ["age"]
    why = "of bytes or nested values, or named as segpipe's own"
    told = f"{place}: rows leave out vectors, thumbnail, box, Note, {why}"
    assert inputs.notes() == [told]


def test_segpipes_rows_are_a_list_of_the_next_run(tmp_path):
    header, row = "id,path,age,status,laterality", "7,a.jpg,60,rejected,L"
    place = write(tmp_path, f"{header}\n{row}\n")
    inputs = Inputs(open_source(place, 1.0))
    assert list_inputs(inputs).columns.names == ["age"]
    assert "rows leave out status, laterality, " in inputs.notes()[0]


def test_a_column_without_a_name_is_left_out(listed):
    """As pandas and R write the numbers of rows."""
    assert listed(",path,age\n0,a.jpg,60\n").columns.names == ["age"]


def test_names_may_be_those_of_a_page_of_the_manifest_and_have_dots(listed, output):
    table = {"path": ["a.jpg"], "list_id": ["x"], "listed": ["y"], "a.b": ["z"], "a": ["w"]}
    manifest = listed(pa.table(table | {"key ä": ["v"]}))
    commit(output, manifest)
    assert heads(finish(output, manifest)) == [
        {"id": None, "list_id": "x", "listed": "y", "a.b": "z", "a": "w", "key ä": "v"}
    ]


def test_the_column_that_names_the_files_comes_back_unless_path_says_it(listed, output):
    manifest = listed("image,level\na,4\n", column="./{image}.jpg")
    commit(output, manifest)
    assert heads(finish(output, manifest)) == [{"id": None, "image": "a", "level": "4"}]
    assert listed("id,level\na.jpg,4\n", column="id").columns.names == ["level"]
    assert listed("Path,level\na.jpg,4\n", column="Path").columns.names == ["level"]


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("path,age,Age", "has columns of one name: age, Age; rename or delete all but one"),
        ("path,path", "has columns of one name: path, path; rename or delete all but one"),
    ],
)
def test_a_name_that_rows_cannot_have_is_told_in_a_line(no_ray, tmp_path, capfd, header, told):
    place = write(tmp_path, f"{header}\n{'a.jpg,' * header.count(',')}x\n")
    assert run("segment", "--input", place, "--output", tmp_path / "out") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"--input {place}: {told}" in line
    table = pa.table([["a.jpg"]] * (header.count(",") + 1), header.split(","))
    with pytest.raises(UserError, match=told):
        open_source(write(tmp_path, table), 1.0).check_readable()


def test_rows_show_the_list_of_today(listed, output):
    """Parts know nothing of it; a part of an older release has no `id` either."""
    first = listed("path,age\na.jpg,60\nb.jpg,61\n")
    versions = first.page(0).to_pylist()
    old = pa.schema([field for field in ROW if field.name != "id"])
    done = [{"path": one["path"], "version": one["version"], "status": "ok"} for one in versions]
    write_parquet(output, f"{PARTS}{0:032x}.parquet", pa.Table.from_pylist(done, schema=old))
    found = []
    for text in (
        "path,age\na.jpg,60\nb.jpg,61\n",
        "path,age\na.jpg,60\nb.jpg,62\n",
        "path,years\na.jpg,60\nb.jpg,62\n",
        "path\na.jpg\nb.jpg\n",
    ):
        manifest = listed(text)
        found.append((manifest.digest, heads(finish(output, manifest))))
    assert [rows[1] for _, rows in found] == [
        {"id": None, "age": "61"},
        {"id": None, "age": "62"},
        {"id": None, "years": "62"},
        {"id": None},
    ]
    assert len({digest for digest, _ in found}) == 4  # else a finished run would keep its rows


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_values_stay_with_their_files_over_pages_and_row_groups(
    listed, output, monkeypatch, at_once
):
    """Some are still open, and others are committed in another order than that of the list."""
    monkeypatch.setattr("segpipe.segment.compact.ROW_GROUP_BYTES", at_once)
    monkeypatch.setattr("segpipe.segment.manifest.PAGE_ROWS", 7)
    names = [f"{number}.jpg" for number in range(30)]
    manifest = listed("path,number\n" + "".join(f"{name},{name[:-4]}\n" for name in names))
    inputs = [one for n in range(len(manifest.pages)) for one in manifest.page(n).to_pylist()]
    done = [{"path": one["path"], "version": one["version"], "status": "ok"} for one in inputs]
    commit_part(output, done[20::-2])
    commit_part(output, done[1::4])
    table = finish(output, manifest)
    wanted = sorted({*range(0, 21, 2), *range(1, 30, 4)})
    assert table["number"].to_pylist() == [str(number) for number in wanted]
    assert [Path(path).stem for path in table["path"].to_pylist()] == table["number"].to_pylist()


def test_columns_json_tells_of_them(listed, output):
    manifest = listed(pa.table({"path": ["a.jpg"], "id": ["7"], "age": [60]}))
    commit(output, manifest)
    finish(output, manifest)
    told = json.loads(output.get("columns.json"))["columns"]
    assert [one["name"] for one in told] == ["id", "age", *OWN]
    assert told[1] == {
        "name": "age",
        "type": "int64",
        "unit": "",
        "definition": "of the list",
        "source": "",
        "peers": "",
    }


def test_a_run_writes_them_and_a_newer_list_changes_them_without_segmenting_again(
    photographs, tmp_path, ray_cluster, capfd
):
    """In Parquet and in CSV, of a rejected photograph too."""
    good = sorted(photographs.iterdir())[0]
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    place = write(tmp_path, f"path,id,age\n{good},7,060\nbad.jpg,8,x\n")
    words = ["segment", "--input", place, "--output", tmp_path / "out", *ONE, "--table", "both"]
    words += ["--checkpoint", "segnet-lite", "--max-rejected", 1]
    assert run(*words) == 0
    assert shown(tmp_path / "out") == [
        {"id": "7", "age": "060", "status": "ok"},
        {"id": "8", "age": "x", "status": "rejected"},
    ]
    assert run(*words) == 0
    assert "is up to date" in capfd.readouterr().out.splitlines()[-1]
    when = [made.stat().st_mtime_ns for made in sorted((tmp_path / "out/masks").rglob("*.png"))]
    write(tmp_path, f"path,id,age,eye\n{good},7,61,L\nbad.jpg,8,x,R\n")
    assert run(*words) == 0
    assert "1 masks, 1 rejected" in capfd.readouterr().out
    assert shown(tmp_path / "out") == [
        {"id": "7", "age": "61", "eye": "L", "status": "ok"},
        {"id": "8", "age": "x", "eye": "R", "status": "rejected"},
    ]
    assert when == [
        made.stat().st_mtime_ns for made in sorted((tmp_path / "out/masks").rglob("*.png"))
    ]


def shown(output: Path) -> list[dict]:
    """A list's columns and the status, the same in results/ and in tables/."""
    [whole], [table] = (output / "results").glob("*"), (output / "tables").glob("*")
    rows = pq.read_table(whole)
    names = rows.column_names[: rows.column_names.index("path")]
    text = list(csv.DictReader(io.StringIO(table.read_text())))
    assert list(text[0])[: len(names)] == names
    found = rows.select([*names, "status"]).to_pylist()
    assert [{name: one[name] for name in (*names, "status")} for one in text] == found
    return found
